"""Into which class an evaluated answer falls: its behaviour (paper Fig. 4b), and what went wrong. Pure.

Promise: the classes of `ERRORS` are disjoint and every episode has exactly one of them. Whatever infrastructure broke is
`tool_failure` or `infra` and nothing else, and has no behaviour class: it is in no accuracy either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mmsr_ray.agent.grammar import TRUNCATED
from mmsr_ray.types import Outcome, ToolFailure

BEHAVIOURS = {
    "correct_search": "correct, searched",
    "correct_no_search": "correct, did not search",
    "wrong_search": "wrong, searched",
    "wrong_no_search": "wrong, did not search",
}
"""The classes of `metrics.behaviour`, in words."""

ERRORS = {
    "none": "none",
    "malformed": "malformed turn",
    "over_budget": "over its search budget",
    "too_long": "too long",
    "wrong_after_search": "wrong answer after a search",
    "wrong_without_search": "wrong answer without search",
    "tool_failure": "a tool broke",
    "infra": "engine, deadline or judge broke",
}


class JudgedTurn(Protocol):
    """The part of a `StoredTurn` that decides."""

    @property
    def action(self) -> str: ...
    @property
    def tool(self) -> str | None: ...
    @property
    def failure(self) -> str | None: ...
    @property
    def detail(self) -> str | None: ...


class Judged(Protocol):
    """The part of a `StoredTrajectory` that decides."""

    @property
    def outcome(self) -> str: ...
    @property
    def correct(self) -> bool | None: ...
    @property
    def turns(self) -> Sequence[JudgedTurn]: ...


def behaviour_class(episode: Judged) -> str | None:
    """One of `BEHAVIOURS`; None for what was never judged."""
    if episode.correct is None:
        return None
    return f"{'correct' if episode.correct else 'wrong'}_{'search' if searched(episode) else 'no_search'}"


def error_type(episode: Judged) -> str:
    """One of `ERRORS`. A search that found nothing is no tool failure: the service answered, and the policy goes on."""
    if episode.outcome == Outcome.INFRA_ERROR or episode.correct is None:
        return "tool_failure" if episode.turns and _broken(episode.turns[-1].failure) else "infra"
    if episode.correct:
        return "none"
    if episode.outcome == Outcome.POLICY_ERROR:
        return _broken_rule(episode.turns)
    return "wrong_after_search" if searched(episode) else "wrong_without_search"


def searched(episode: Judged) -> bool:
    """Was a search executed?"""
    return any(turn.tool for turn in episode.turns)


def _broken_rule(turns: Sequence[JudgedTurn]) -> str:
    """Which rule of the episode the last turn broke. A search that was executed left no room for another turn."""
    if not turns or turns[-1].tool:
        return "too_long"
    last = turns[-1]
    if last.action in ("image_search", "text_search"):
        return "over_budget"
    return "too_long" if last.detail == TRUNCATED else "malformed"


def _broken(failure: str | None) -> bool:
    return failure is not None and ToolFailure(failure).infra
