"""The registry of published weight versions: a named Ray actor that holds references, never bytes.

Promise: the last two versions can be pulled at any time; older ones lose their last reference here and are freed once
no engine reads them. The references are owned by whoever published (the Algorithm), so buckets outlive the rank that
made them. They are passed inside lists: Ray then counts them, where a bare argument would be fetched.
"""

from __future__ import annotations

from typing import Any, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

VERSIONS_KEPT = 2
NO_VERSION = -1


class UnknownVersion(KeyError):
    """A version that was never published, or is gone."""


@ray.remote(num_cpus=0, max_restarts=0)
class WeightStore:
    """Versions of the policy's weights, by number. Not restartable: a store without memory would serve old weights."""

    def __init__(self) -> None:
        self._versions: dict[int, tuple[list[ObjectRef], dict[str, Any]]] = {}

    def publish(self, version: int, refs: list[ObjectRef], manifest: dict[str, Any] | None = None) -> int:
        """Make a version current. `refs` are its buckets in order. Raises ValueError unless `version` grows, or repeats the latest."""
        if version < self.latest():
            raise ValueError(f"weight version {version} published after {self.latest()}")
        if not refs:
            raise ValueError(f"weight version {version} has no buckets")
        self._versions[version] = (list(refs), dict(manifest or {}))
        for old in sorted(self._versions)[:-VERSIONS_KEPT]:
            del self._versions[old]
        return version

    def latest(self) -> int:
        """The newest version, or NO_VERSION."""
        return max(self._versions, default=NO_VERSION)

    def versions(self) -> list[int]:
        return sorted(self._versions)

    def manifest(self, version: int) -> dict[str, Any]:
        """What the publisher said of a version, with its number of buckets. Raises UnknownVersion."""
        refs, manifest = self._found(version)
        return {**manifest, "buckets": len(refs)}

    def bucket(self, version: int, index: int) -> list[ObjectRef]:
        """One bucket's reference, in a list. Raises UnknownVersion."""
        return [self._found(version)[0][index]]

    def bucket_refs(self, version: int) -> list[ObjectRef]:
        """All buckets' references, in order. Raises UnknownVersion."""
        return list(self._found(version)[0])

    def _found(self, version: int) -> tuple[list[ObjectRef], dict[str, Any]]:
        if version not in self._versions:
            raise UnknownVersion(f"weight version {version} is not in the store: it holds {self.versions()}")
        return self._versions[version]


def store_name(run: str) -> str:
    """Name of a run's store, in the run's namespace."""
    return f"weights-{run}"


def start_store(name: str, namespace: str) -> ActorHandle:
    """A new, empty store on this node that lives as long as the caller keeps the handle. Raises ValueError where the name is taken."""
    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )  # soft would let it spill to a node that may be lost alone
    return cast(ActorHandle, WeightStore.options(name=name, namespace=namespace, scheduling_strategy=here).remote())


def find_store(name: str, namespace: str) -> ActorHandle:
    """Raises ValueError where no such store runs."""
    return ray.get_actor(name, namespace=namespace)
