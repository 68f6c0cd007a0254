"""What Ray's head knows of the cluster: which nodes live, what they have, what of it is free.

Promise: every question here has an answer or a `HeadAway` within its seconds. Ray's own (`ray.nodes()`, `ray.cluster_resources()`,
`ray.available_resources()`) wait for ever while the head is away. Nothing here starts or joins a Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ray._private.worker import global_worker
from ray.exceptions import RpcError

SECONDS = 40.0  # a head that is restarted elsewhere is often back by then; Ray ends a process that misses it for 60
STORE = "object_store_memory"

T = TypeVar("T")


class HeadAway(RuntimeError):
    """The head of Ray does not answer; one sentence says for how long it was asked and where to look."""


@dataclass(frozen=True, slots=True)
class Node:
    """One that lives, and all that it has, by the names of Ray's resources."""

    id: str  # hex
    address: str
    resources: dict[str, float]


def living_nodes(seconds: float | None = None) -> list[Node]:
    """Raises HeadAway after `seconds`, which are SECONDS by default, here and below."""
    found = ask(lambda head, timeout: head.get_all_node_info(timeout=timeout), seconds)
    return [
        Node(node_id.hex(), node.node_manager_address, dict(node.resources_total))
        for node_id, node in found.items()
        if node.state == node.ALIVE
    ]


def free_resources(seconds: float | None = None) -> list[dict[str, float]]:
    """Of each living node, as of about half a second ago. Raises HeadAway."""
    return [dict(node.resources_available) for node in _usage(seconds)]


def stored_bytes(seconds: float | None = None) -> float:
    """In the object stores of all living nodes. Raises HeadAway."""
    return sum(node.resources_total[STORE] - node.resources_available[STORE] for node in _usage(seconds))


def _usage(seconds: float | None) -> list[Any]:
    return list(ask(lambda head, timeout: head.get_all_resource_usage(timeout=timeout), seconds).resource_usage_data.batch)


def ask(question: Callable[[Any, float], T], seconds: float | None = None) -> T:
    """What `question` makes of this process's client of the head and the seconds that it may wait for it. Raises HeadAway."""
    timeout = SECONDS if seconds is None else seconds
    try:
        return question(global_worker.gcs_client, timeout)  # type: ignore[attr-defined]  # set by ray.init
    except RpcError as error:
        raise HeadAway(
            f"the head of Ray does not answer (asked for {timeout:.0f} s: {error}): it is down, cut off or overloaded; see gcs_server.out "
            "among its logs, then run the same command again"
        ) from None
