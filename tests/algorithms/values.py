"""Values that tests of this room share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmsr_ray.types import GroupSummary, Outcome, TrajectorySummary

PLAIN = TrajectorySummary(
    uid="q",
    index=0,
    outcome=Outcome.OK,
    detail="",
    reward=1.0,
    correct=True,
    well_formed=True,
    image_searches=0,
    text_searches=0,
    tool_failures=0,
    turns=1,
    length=100,
    sampled_tokens=20,
    pictures=1,
    version_min=0,
    version_max=0,
    generate_seconds=1.0,
    tool_seconds=0.5,
    cost_usd=0.0,
)


def summary(**changes: Any) -> TrajectorySummary:
    return replace(PLAIN, **changes)


def group(*trajectories: TrajectorySummary, uid: str = "q", epoch: int = 0) -> GroupSummary:
    return GroupSummary(uid=uid, epoch=epoch, trajectories=trajectories)
