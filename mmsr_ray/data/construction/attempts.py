"""The rollouts of one question, as a candidate carries them: `Candidate.attempts`, a JSON list with one object a rollout.

Promise: pure. Only rollouts that ended are there; those that infrastructure broke are not. The text holds what a person needs who
judges the question (answers, queries, what was found) and no pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmsr_ray.types import ImageHit, Need, Outcome, TextHit, ToolKind, Trajectory, Turn


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a label is read off."""

    correct: bool
    image_searches: int
    text_searches: int

    @property
    def way(self) -> Need:
        """What a question would need that only this way answers."""
        if self.image_searches:
            return Need.MIX if self.text_searches else Need.IMAGE
        return Need.TEXT if self.text_searches else Need.SEARCH_FREE


def to_json(trajectories: Iterable[Trajectory]) -> str:
    """Scored trajectories of one question; infrastructure errors are left out."""
    entries = [
        {
            "correct": t.reward is not None and t.reward.correct,
            "image_searches": t.calls(ToolKind.IMAGE),
            "text_searches": t.calls(ToolKind.TEXT),
            "workflow": t.workflow,
            "answer": t.answer,
            "outcome": t.outcome.value,
            "detail": t.detail,
            "searches": [search for turn in t.turns if (search := _search(turn)) is not None],
        }
        for t in trajectories
        if t.outcome is not Outcome.INFRA_ERROR
    ]
    return json.dumps(entries, ensure_ascii=False)


def from_json(text: str) -> list[Attempt]:
    """Raises ValueError when it is no such text."""
    try:
        entries: list[dict[str, Any]] = json.loads(text)
        if not isinstance(entries, list):
            raise TypeError("no list")
        return [Attempt(bool(e["correct"]), int(e["image_searches"]), int(e["text_searches"])) for e in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"these are no attempts ({error!r}): {text[:80]!r}") from error


def _search(turn: Turn) -> dict[str, Any] | None:
    if turn.tool is None:
        return None
    query = turn.tool.query if turn.tool.kind is ToolKind.TEXT else ""
    return {"tool": turn.tool.kind.value, "query": query, "failure": turn.tool.failure, "hits": [_hit(hit) for hit in turn.tool.hits]}


def _hit(hit: ImageHit | TextHit) -> dict[str, str]:
    return {"title": hit.title, "url": hit.url, "summary": hit.summary if isinstance(hit, TextHit) else ""}
