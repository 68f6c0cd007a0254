"""Room on the cluster, before anything is started there: Tune itself would wait for ever for a trial that does not fit.

Promise: what can never be met is told within a minute, with what was asked, what is there and what is missing. Waiting goes on, and
is told every minute, only where it has a point: an autoscaler may add nodes, or others hold what is lacking now.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]  # generated
from ray.tune import PlacementGroupFactory
from ray.util import remove_placement_group

from mmsr_ray.algorithms.placement import Resources, Room, copies, fit
from mmsr_ray.head import HeadAway, ask, free_resources, living_nodes

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 50.0  # for nodes that are starting by hand, where no autoscaler runs
TELL_SECONDS = 60.0
REFUSED_SECONDS = 15.0  # for which an autoscaler must say that it can never add what is missing: it may be starting itself
ALONE_SECONDS = 8.0  # of one kind of bundle, asked for alone
GCS_SECONDS = 10.0
FIRST_STATUS = b"__autoscaling_status"  # key of the first autoscaler's report in Ray's store
READONLY = "node_"
REMEDY_OF_ONE = "ask for less on one node, or add a group of larger ones (or with the custom resource that is asked for)"
REMEDY = "lower rollout.num_runners, learner.world_size or what each of them asks for, or start Ray with more"


class NoRoom(RuntimeError):
    """The bundles of a trial do not fit on the cluster: asked, available, missing."""


def wait_for_room(
    wanted: PlacementGroupFactory, seconds: float, what: str = "training", explain: Callable[[Resources], str] | None = None
) -> None:
    """Reserve what `what` needs and let it go again; a reservation makes an autoscaler add nodes.

    Raises NoRoom after `seconds`, and within a minute where neither more nodes nor less load could help; and HeadAway. `explain` puts
    a bundle that no node can ever hold into words.
    """
    with _reserved(wanted) as ready:
        began, told = time.monotonic(), 0.0
        refused_since = None
        while not ray.wait([ready], timeout=1.0)[0]:
            waited = time.monotonic() - began
            if waited > seconds:
                raise NoRoom(f"no room for {what} within grpo.placement_seconds={seconds:.0f}: {_room_now(wanted)}; {REMEDY}")
            if waited > PATIENCE_SECONDS and not (room := _room(wanted)).enough and not autoscaler_runs():
                raise NoRoom(f"{what} does not fit on this cluster, and no autoscaler adds nodes to it: {room}; {REMEDY}")
            if not _room(wanted).enough and autoscaler_runs() and _refused(wanted.bundles):
                refused_since = waited if refused_since is None else refused_since
                if waited - refused_since > REFUSED_SECONDS:
                    raise NoRoom(f"{what} can never fit on this cluster: {_why_never(wanted, explain)}")
            else:
                refused_since = None
            if waited > told:
                logger.warning("%s waits for %s: %s", what, _for_what(wanted), _room_now(wanted))
                told += TELL_SECONDS


@contextmanager
def _reserved(wanted: PlacementGroupFactory) -> Iterator[ray.ObjectRef]:
    """What says that the room is there; afterwards it is let go. With the head away that would take a minute: it ends with the job."""
    reservation, away = wanted(), False
    try:
        yield reservation.ready()
    except HeadAway:
        away = True
        raise
    finally:
        if not away:
            remove_placement_group(reservation)


def _why_never(wanted: PlacementGroupFactory, explain: Callable[[Resources], str] | None) -> str:
    """Which kind of bundle the autoscaler has no nodes for, each asked for alone; else there are too many."""
    for bundle in [dict(kind) for kind in dict.fromkeys(tuple(sorted(bundle.items())) for bundle in wanted.bundles)]:
        with _reserved(PlacementGroupFactory([bundle])) as ready:
            deadline = time.monotonic() + ALONE_SECONDS
            while not ray.wait([ready], timeout=0.5)[0] and time.monotonic() < deadline:
                if _refused([bundle]):
                    said = explain(bundle) if explain else f"no node can ever hold {bundle}"
                    return f"{said}; no worker group has such nodes: {REMEDY_OF_ONE}"
    return f"its worker groups at their largest are too small: {_room(wanted)}; raise maxReplicas of a group, or {REMEDY}"


def _refused(bundles: Sequence[Resources]) -> bool:
    """Does the second autoscaler say that it can never add nodes for such a reservation? One that only watches says so of all."""
    asked = _counted(bundles)
    gangs = (_status() or GetClusterStatusReply()).autoscaling_state.infeasible_gang_resource_requests
    return any(_counted([dict(request.resources_bundle) for request in _requests(gang)]) == asked for gang in gangs)


def _requests(gang: Any) -> Iterable[Any]:
    """Ray 2.60 fills one of the two."""
    return gang.requests or [request for selector in gang.bundle_selectors for request in selector.resource_requests]


def _counted(bundles: Sequence[Resources]) -> Counter[tuple[tuple[str, float], ...]]:
    return Counter(tuple(sorted((name, round(amount, 4)) for name, amount in bundle.items() if amount)) for bundle in bundles)


def free_room(bundle: Mapping[str, float]) -> int:
    """How many such bundles fit on what is free now."""
    return copies(bundle, free_resources())


def _for_what(wanted: PlacementGroupFactory) -> str:
    if _room(wanted).enough:
        return "others to let go of what they hold"
    return "the autoscaler to add nodes" if autoscaler_runs() else "nodes to join"


def _room(wanted: PlacementGroupFactory) -> Room:
    """On nodes that hold nothing else."""
    return fit(wanted.bundles, [node.resources for node in living_nodes()])


def _room_now(wanted: PlacementGroupFactory) -> Room:
    """On what is free now, where an empty cluster would do."""
    whole = _room(wanted)
    return fit(wanted.bundles, free_resources()) if whole.enough else whole


def autoscaler_runs() -> bool:
    """Does something add nodes to this cluster? False where Ray cannot say. Raises HeadAway."""
    reply = _status()
    if reply is None:
        return False
    status = ask(lambda head, timeout: head.internal_kv_get(FIRST_STATUS, None, timeout=timeout), GCS_SECONDS)
    state = reply.autoscaling_state
    types = [node.ray_node_type_name for node in reply.cluster_resource_state.node_states]
    pending = len(state.pending_instances) + len(state.pending_instance_requests)
    return first_scales(json.loads(status) if status else {}) or second_scales(state.autoscaler_state_version, types, pending)


def _status() -> Any:
    """A GetClusterStatusReply, or None where Ray cannot say."""
    try:
        said = ask(lambda head, timeout: head.get_cluster_status(timeout_s=timeout), GCS_SECONDS)
    except HeadAway as error:
        logger.warning("whether an autoscaler runs is not known: %s", error)
        return None
    reply = GetClusterStatusReply()
    reply.ParseFromString(said)
    return reply


def first_scales(status: Mapping[str, Any]) -> bool:
    """By what the first autoscaler writes of itself. Without a config it only watches, and calls each node a type named for its id."""
    report = status.get("autoscaler_report")
    if report is None:
        return False
    return not any(name.startswith(READONLY) for key in ("active_nodes", "idle_nodes") for name in report.get(key) or {})


def second_scales(version: int, node_types: Iterable[str], pending: int) -> bool:
    """By what the second autoscaler reports. `version` is 0 where it does not run; where it only watches, nodes have no type.

    `pending`: nodes that it is starting.
    """
    return version > 0 and (pending > 0 or any(node_types))
