"""One flat record per training step, from summaries and numbers. Pure, except for `MetricsFile`.

Invariant: `metrics.jsonl` has one line per training step, in order, each step once, also after a resume.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsr_ray.types import GroupSummary, TrajectorySummary


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def searches(trajectory: TrajectorySummary) -> int:
    return trajectory.image_searches + trajectory.text_searches


def rollout_record(groups: Sequence[GroupSummary], *, search_limit: int) -> dict[str, Any]:
    """Means over the responses of a step: reward, accuracy, format, searching, lengths.

    `search_ratio_calls` is calls over allowed calls, `search_ratio_responses` the share of responses that search,
    `searches_*` are calls per question, `by_need` maps a question's need to calls per question.
    """
    rows = [t for g in groups for t in g.trajectories]
    needs = sorted({t.need for t in rows if t.need is not None})
    return {
        "reward": _mean([t.reward for t in rows]),
        "accuracy": _mean([float(t.correct) for t in rows]),
        "format_ok": _mean([float(t.well_formed) for t in rows]),
        "search_ratio_calls": _mean([searches(t) / max(search_limit, 1) for t in rows]),
        "search_ratio_responses": _mean([float(searches(t) > 0) for t in rows]),
        "searches_image": _mean([t.image_searches for t in rows]),
        "searches_text": _mean([t.text_searches for t in rows]),
        "by_need": {str(need): _mean([searches(t) for t in rows if t.need is need]) for need in needs},
        "length_mean": _mean([t.length for t in rows]),
        "sampled_tokens": sum(t.sampled_tokens for t in rows),
        "tool_failures": sum(t.tool_failures for t in rows),
        "cost_usd": sum(t.cost_usd for t in rows),
        "groups": len(groups),
        "trajectories": len(rows),
    }


def response_record(groups: Sequence[GroupSummary]) -> dict[str, float]:
    """Mean seconds that a response spent in the engine and in tools."""
    rows = [t for g in groups for t in g.trajectories]
    return {"generate": _mean([t.generate_seconds for t in rows]), "tools": _mean([t.tool_seconds for t in rows])}


def staleness_of(groups: Sequence[GroupSummary], version: int, bound: int) -> int:
    """Largest age in versions of a sampled token at training time. Raises AssertionError beyond `bound`.

    Trajectories without sampled tokens carry version -1 and have no age.
    """
    worst = 0
    for group in groups:
        oldest = min((t.version_min for t in group.trajectories if t.version_min >= 0), default=version)
        newest = max((t.version_max for t in group.trajectories), default=version)
        if version - oldest > bound or newest > version:
            raise AssertionError(
                f"group {group.uid} was sampled by weight versions {oldest}..{newest} and would be trained at {version}: "
                f"the bound is grpo.staleness={bound}"
            )
        worst = max(worst, version - oldest)
    return worst


class MetricsFile:
    """Appends records to a JSON-lines file, flushed and synced line by line. Trackers and the live lines follow it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fresh = True
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, record: dict[str, Any]) -> None:
        """The first one supersedes what an earlier process left of its step and of later ones."""
        if self._fresh:
            self.truncate(record["step"] - 1)
            self._fresh = False
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def truncate(self, last_step: int) -> None:
        """Drop the lines of steps after `last_step`, which a resumed run will do again, and a torn last line."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _step(line) <= last_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        temporary.replace(self.path)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except json.JSONDecodeError:
        return float("inf")  # a line cut short by a kill
