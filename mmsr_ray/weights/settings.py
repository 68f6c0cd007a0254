"""Which ways weights can take to the engines under which settings. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmsr_ray.config import LearnerConfig, RolloutConfig


def complaint(learner: LearnerConfig, rollout: RolloutConfig, sync_seconds: float) -> str:
    """Why `learner.transport` cannot be what it is, in one sentence; "" when it can. `sync_seconds`: `grpo.sync_seconds`."""
    sync = min(rollout.sync_seconds, sync_seconds)
    rules = {"object_store": [], "collective": _collective(learner, rollout, sync), "ipc": _ipc(learner)}.get(learner.transport)
    if rules is None:
        return f"learner.transport={learner.transport!r}: choose object_store, collective or ipc"
    return next((f"learner.transport={learner.transport} {sentence}" for wrong, sentence in rules if wrong), "")


def _collective(learner: LearnerConfig, rollout: RolloutConfig, sync_seconds: float) -> list[tuple[bool, str]]:
    rank, runner = learner.gpus_per_rank, rollout.gpus_per_runner
    return [
        (
            not 0 < learner.transport_seconds <= sync_seconds / 4,
            f"cannot wait for learner.transport_seconds={learner.transport_seconds:g}: choose more than 0, and at most a quarter of "
            "rollout.sync_seconds and of grpo.sync_seconds, in which a version must come by the object store after all",
        ),
        (
            rollout.update == "wait",
            "has every engine wait for the slowest one's turns where rollout.update=wait: choose keep, or object_store",
        ),
        (learner.colocated, "has no two members on one card: choose ipc or object_store, or set learner.colocated=false"),
        (
            (rank > 0) != (runner > 0),
            f"needs both sides on cards or both on hosts: learner.gpus_per_rank={rank:g}, rollout.gpus_per_runner={runner:g}",
        ),
        (
            0 < rank < 1 or 0 < runner < 1,
            f"has no two members on one card: set learner.gpus_per_rank={rank:g} and rollout.gpus_per_runner={runner:g} to whole cards",
        ),
    ]


def _ipc(learner: LearnerConfig) -> list[tuple[bool, str]]:
    return [
        (not learner.colocated, "needs engine and rank on one card: set learner.colocated=true, or choose collective or object_store"),
        (learner.zero_stage not in (1, 2), "needs learner.zero_stage 1 or 2, with which every rank has whole weights on its card"),
        (learner.lora.rank > 0, "shares weights as they lie, and merged ones lie nowhere: choose object_store, with lora.sync=adapter"),
    ]
