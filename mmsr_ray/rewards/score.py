"""The training reward (spec §3.1): (1 - alpha) * accuracy * penalty + alpha * format, minus the overlong penalty if any.

An answer is right when the rule (`reward.match`) accepts it or, where there is a judge (`tools.judge`), the judge does:
the judge is asked about what the rule rejects, since what equals an accepted wording needs no opinion. So accuracy stays
0 or 1, as the filter of groups wants it.

Promise: pure, and defined for every trajectory the policy can cause. An infrastructure error has no reward, and a judge
that is down is one: asking for such a reward is a bug and raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmsr_ray.agent.grammar import counted_searches, format_ok
from mmsr_ray.config import Config, RewardConfig
from mmsr_ray.rewards.judge import YES, Case
from mmsr_ray.rewards.match import exact_match, sub_match
from mmsr_ray.types import Outcome, Reward, Sample, Trajectory


def score(trajectory: Trajectory, sample: Sample, config: RewardConfig, allowed_paths: Sequence[str], step: int) -> Reward:
    """Reward of one trajectory, with its `verdict` if it has one. `step` counts training steps from 1 and matters only
    during the penalty's warm-up.

    The direct and RAG workflows have no tags: well-formed means answered, and searches are those executed.
    Raises ValueError for an infrastructure error.
    """
    if trajectory.outcome is Outcome.INFRA_ERROR or (trajectory.verdict is not None and not trajectory.verdict.ok):
        raise ValueError(
            f"trajectory {trajectory.uid}/{trajectory.index} is an infrastructure error ({trajectory.detail}): it has no reward"
        )
    answered = _answered(trajectory)
    correct = answered and (_rule_accepts(trajectory, sample, config) or judge_says(trajectory) is True)
    if trajectory.workflow == "on_demand":
        texts = [turn.text for turn in trajectory.turns]
        well_formed = answered and format_ok(texts, allowed_paths)
        searches = counted_searches(texts)
    else:
        well_formed = answered
        searches = sum(turn.tool is not None for turn in trajectory.turns)
    alpha = config.format_weight
    total = (1 - alpha) * correct * _penalty(searches, config, step) + alpha * well_formed
    total += overlong(sum(turn.tokens for turn in trajectory.turns), config.overlong_limit, config.overlong_buffer)
    return Reward(total=float(total), correct=correct, well_formed=well_formed, searches_counted=searches)


def case_for_judge(trajectory: Trajectory, sample: Sample, config: RewardConfig) -> Case | None:
    """What a judge must decide before `score`; None where nothing is answered or the rule accepts the answer."""
    if not _answered(trajectory) or _rule_accepts(trajectory, sample, config):
        return None
    return Case(sample.question, sample.answers, trajectory.answer or "", sample.image if config.judge_sees_picture else b"")


def reward_in_evaluation(config: Config) -> RewardConfig:
    """What decides whether an evaluated answer is right: as in training or, with `evaluation.judge_all`, the judge alone (spec §6.3)."""
    return replace(config.reward, match="none") if config.evaluation.judge_all else config.reward


def rules_say(trajectory: Trajectory, sample: Sample) -> tuple[bool, bool]:
    """(exact match, SubEM) of the answer, whoever decides; both False where nothing was answered in the form asked for."""
    if not _answered(trajectory):
        return False, False
    answer = trajectory.answer or ""
    return exact_match(answer, sample.answers), sub_match(answer, sample.answers)


def judge_says(trajectory: Trajectory) -> bool | None:
    """The judge's verdict; None where nobody asked it or it gave none."""
    return trajectory.verdict.hits[0].title == YES if trajectory.verdict is not None and trajectory.verdict.ok else None


def overlong(tokens: int, limit: int, buffer: int) -> float:
    """DAPO's soft punishment (arXiv 2503.14476, equation 13), in [-1, 0]; 0 without a limit."""
    if limit == 0 or tokens <= limit - buffer:
        return 0.0
    return -1.0 if tokens > limit else (limit - buffer - tokens) / buffer


def _answered(trajectory: Trajectory) -> bool:
    return trajectory.outcome is Outcome.OK and trajectory.answer is not None


def _rule_accepts(trajectory: Trajectory, sample: Sample, config: RewardConfig) -> bool:
    if config.match == "none":
        return False
    return {"em": exact_match, "subem": sub_match}[config.match](trajectory.answer or "", sample.answers)


def _penalty(searches: int, config: RewardConfig, step: int) -> float:
    """Factor on a correct answer: (1 - p) once, or once a search. During the warm-up p rises from -p (a bonus) to p."""
    p = config.search_penalty
    if config.penalty_warmup_steps > 0:
        p = -p + 2 * p * min(max(step - 1, 0) / config.penalty_warmup_steps, 1.0)
    return (1 - p) ** (searches if config.per_call else min(searches, 1))
