"""Colocated mode: what the settings must look like when runners and ranks share cards. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmsr_ray.config import RolloutConfig
    from mmsr_ray.learner.settings import LearnerConfig


def complaint(learner: LearnerConfig, rollout: RolloutConfig, staleness: int) -> str:
    """Why these settings cannot be colocated, in one sentence; "" when they can, or are not to be."""
    if not learner.colocated:
        return ""
    if staleness != 0:
        return f"learner.colocated needs grpo.staleness=0, not {staleness}: nothing is sampled while the learner has the cards"
    if rollout.num_runners != learner.world_size:
        return (
            f"learner.colocated pairs runner i with rank i: set rollout.num_runners={rollout.num_runners} "
            f"and learner.world_size={learner.world_size} to the same number"
        )
    if rollout.max_runners > rollout.num_runners:
        return "learner.colocated has no elastic runners, because a runner shares its card with a rank: set rollout.max_runners=0"
    if rollout.tensor_parallel != 1:
        return "learner.colocated needs rollout.tensor_parallel=1: a runner shares one card with one rank"
    runner, rank = rollout.gpus_per_runner, learner.gpus_per_rank
    if (runner > 0) != (rank > 0) or runner + rank > 1 or 0 < runner + rank <= 0.5:
        return (
            f"learner.colocated puts a runner and a rank on one card: rollout.gpus_per_runner={runner} and learner.gpus_per_rank={rank} "
            "must both be 0, or add up to 1 at most, and to more than 0.5, or a second pair comes to the same card (0.5 and 0.5)"
        )
    if learner.zero_stage == 0:
        return "learner.colocated needs learner.zero_stage 1, 2 or 3: without ZeRO DeepSpeed cannot move its states off the card"
    if learner.zero_stage == 3 and learner.offload == "none":
        return (
            "learner.colocated with learner.zero_stage=3 needs learner.offload=optimizer or all: "
            "DeepSpeed moves the optimiser of ZeRO-3 off the card only if it is its own FusedAdam; or set learner.zero_stage=2"
        )
    if learner.zero_stage == 3 and learner.offload == "optimizer" and (learner.lora.rank > 0 or learner.freeze_vision):
        return (
            "learner.colocated with learner.zero_stage=3 and learner.offload=optimizer cannot have weights that do not learn (learner.lora, "
            "learner.freeze_vision): DeepSpeed counts them among those it moves, and has no room for them; set learner.offload=all, or "
            "learner.zero_stage=2"
        )
    return ""


def cards_alone(learner: LearnerConfig, share: float) -> float:
    """Cards of an engine without a rank beside it (an evaluation, a service), or of a rank without an engine (supervised training).

    `share` is what the settings give it: whole cards where a recipe for reinforcement shares them. Two halves would come to one card, where
    both engines ask for rollout.gpu_memory_utilization of it, and NCCL refuses the second rank.
    """
    return math.ceil(share) if learner.colocated else share
