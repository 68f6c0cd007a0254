"""The training reward (spec §3.1): (1 - alpha) * accuracy * penalty + alpha * format.

Promise: pure, and defined for every trajectory the policy can cause. An infrastructure error has no reward: asking for
one is a bug and raises.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmsr_ray.agent.grammar import counted_searches, format_ok
from mmsr_ray.config import RewardConfig
from mmsr_ray.rewards.match import exact_match, sub_match
from mmsr_ray.types import Outcome, Reward, Sample, Trajectory

_MATCHERS = {"em": exact_match, "subem": sub_match}


def score(trajectory: Trajectory, sample: Sample, config: RewardConfig, allowed_paths: Sequence[str], step: int) -> Reward:
    """Reward of one trajectory. `step` counts training steps from 1 and matters only during the penalty's warm-up.

    The direct and RAG workflows have no tags: well-formed means answered, and searches are those executed.
    Raises ValueError for an infrastructure error.
    """
    if trajectory.outcome is Outcome.INFRA_ERROR:
        raise ValueError(
            f"trajectory {trajectory.uid}/{trajectory.index} is an infrastructure error ({trajectory.detail}): it has no reward"
        )
    answered = trajectory.outcome is Outcome.OK and trajectory.answer is not None
    correct = answered and _MATCHERS[config.match](trajectory.answer or "", sample.answers)
    if trajectory.workflow == "on_demand":
        texts = [turn.text for turn in trajectory.turns]
        well_formed = answered and format_ok(texts, allowed_paths)
        searches = counted_searches(texts)
    else:
        well_formed = answered
        searches = sum(turn.tool is not None for turn in trajectory.turns)
    alpha = config.format_weight
    total = (1 - alpha) * correct * _penalty(searches, config, step) + alpha * well_formed
    return Reward(total=float(total), correct=correct, well_formed=well_formed, searches_counted=searches)


def _penalty(searches: int, config: RewardConfig, step: int) -> float:
    """Factor on a correct answer: (1 - p) once, or once a search. During the warm-up p rises from -p (a bonus) to p."""
    p = config.search_penalty
    if config.penalty_warmup_steps > 0:
        p = -p + 2 * p * min(max(step - 1, 0) / config.penalty_warmup_steps, 1.0)
    return (1 - p) ** (searches if config.per_call else min(searches, 1))
