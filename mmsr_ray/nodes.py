"""Which nodes a role may lie on. Pure.

Promise: a role whose `node` setting is "" lies anywhere. One that names a custom resource of Ray (`ray start --resources`,
`resources` of a KubeRay worker group) lies only on nodes that offer it, for it asks for a thousandth of it: a node that offers 1
never runs short of it. Placement groups, Ray's autoscaler and `algorithms.placement` all reckon with it as with any resource.
"""

from __future__ import annotations

import re

SHARE = 0.001
RAYS_OWN = ("CPU", "GPU", "memory", "object_store_memory")


def resources(node: str) -> dict[str, float]:
    """What an actor of the role asks for beside its CPUs and GPUs."""
    return {node: SHARE} if node else {}


def bundle_of(cpus: float, gpus: float, node: str) -> dict[str, float]:
    """What a role reserves on one node; without what it asks nothing of."""
    return {name: amount for name, amount in ({"CPU": cpus, "GPU": gpus} | resources(node)).items() if amount}


def complaint(key: str, node: str) -> str:
    """Why `key` cannot have this value, in one sentence; "" when it can."""
    if not node or (re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", node) and node not in RAYS_OWN and not node.startswith("node:")):
        return ""
    return (
        f"{key}={node!r} must name a custom resource of the nodes meant, such as runner (letters, digits, _ . -), or be empty for any node"
    )
