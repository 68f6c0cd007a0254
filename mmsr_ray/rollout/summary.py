"""What the driver is told of a trajectory: numbers and labels only. Pure."""

from __future__ import annotations

from mmsr_ray.rewards.score import judge_says, rules_say
from mmsr_ray.types import Sample, ToolFailure, ToolKind, ToolResult, Trajectory, TrajectorySummary


def summarise(trajectory: Trajectory, sample: Sample) -> TrajectorySummary:
    """Numbers of one trajectory. One without reward (an infrastructure error) counts as reward 0 and not correct."""
    tokens, reward = trajectory.tokens, trajectory.reward
    versions = tokens.versions[tokens.loss_mask]
    results = [turn.tool for turn in trajectory.turns if turn.tool is not None]
    em, subem = rules_say(trajectory, sample)
    return TrajectorySummary(
        uid=trajectory.uid,
        index=trajectory.index,
        outcome=trajectory.outcome,
        detail=trajectory.detail,
        reward=reward.total if reward else 0.0,
        correct=reward.correct if reward else False,
        well_formed=reward.well_formed if reward else False,
        image_searches=trajectory.calls(ToolKind.IMAGE),
        text_searches=trajectory.calls(ToolKind.TEXT),
        tool_failures=sum(not result.ok for result in results),
        turns=len(trajectory.turns),
        length=tokens.length,
        sampled_tokens=int(tokens.loss_mask.sum()) if tokens.length else sum(turn.tokens for turn in trajectory.turns),
        pictures=len(tokens.pictures),
        patches=tokens.patches,
        version_min=int(versions.min()) if versions.size else -1,
        version_max=int(versions.max()) if versions.size else -1,
        generate_seconds=trajectory.generate_seconds,
        tool_seconds=trajectory.tool_seconds,
        cost_usd=sum(result.cost_usd for result in trajectory.paid_calls),
        need=sample.need,
        source=sample.source,
        out_of_money=trajectory.out_of_money,
        category=sample.category,
        em=em,
        subem=subem,
        judged=judge_says(trajectory),
        image_failures=_broken(results, ToolKind.IMAGE),
        text_failures=_broken(results, ToolKind.TEXT),
        image_no_results=_fruitless(results, ToolKind.IMAGE),
        text_no_results=_fruitless(results, ToolKind.TEXT),
    )


def _broken(results: list[ToolResult], kind: ToolKind) -> int:
    return sum(result.kind is kind and result.failure is not None and result.failure.infra for result in results)


def _fruitless(results: list[ToolResult], kind: ToolKind) -> int:
    return sum(result.kind is kind and result.failure is ToolFailure.NO_RESULTS for result in results)
