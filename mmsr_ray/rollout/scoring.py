"""From an ended episode to a scored one: the judge's verdict where one is needed, then the reward.

Promise: an answer that needed a judge and got none is an infrastructure error, never a wrong answer. A replay that was asked for
what its tape does not hold raises, for asking again would not help.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from mmsr_ray.rewards.judge import Judge
from mmsr_ray.rewards.score import case_for_judge, score
from mmsr_ray.rewards.settings import RewardConfig
from mmsr_ray.tools.tape import TapeMiss
from mmsr_ray.types import Outcome, Sample, ToolFailure, Trajectory

logger = logging.getLogger(__name__)

AFTER_WARMUP = 1 << 30  # the training step that evaluation is scored at: the search penalty in full


async def scored(
    trajectory: Trajectory, sample: Sample, reward: RewardConfig, allowed_paths: Sequence[str], judge: Judge | None, step: int
) -> Trajectory:
    """With its reward and, where the judge was asked, its verdict. `step` counts training steps from 1. Raises TapeMiss."""
    case = case_for_judge(trajectory, sample, reward) if judge is not None else None
    if judge is not None and case is not None:
        verdict = await judge.judge(case)
        trajectory = replace(trajectory, verdict=verdict)
        raise_if_not_on_tape(trajectory)
        if not verdict.ok:
            logger.info("rollout %d of %s has no verdict: %s", trajectory.index, sample.uid, verdict.detail)
            return replace(trajectory, outcome=Outcome.INFRA_ERROR, detail=f"no verdict of the judge: {verdict.detail}")
    return replace(trajectory, reward=score(trajectory, sample, reward, allowed_paths, step))


def raise_if_not_on_tape(trajectory: Trajectory) -> None:
    """Raises TapeMiss: asking again would not help, and to leave the rollout out would be another run than the one recorded."""
    for result in trajectory.paid_calls:
        if result.failure is ToolFailure.TAPE_MISS:
            raise TapeMiss(result.detail)
