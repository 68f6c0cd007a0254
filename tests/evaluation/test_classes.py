"""Every way an episode can end has one class, after a way through the file as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmsr_ray.agent.grammar import TRUNCATED
from mmsr_ray.evaluation.classes import BEHAVIOURS, ERRORS, behaviour_class, error_type
from mmsr_ray.evaluation.metrics import behaviour
from mmsr_ray.evaluation.trajectories import StoredTrajectory, read_trajectories, write_trajectories
from mmsr_ray.observability.catalogue import read_source
from mmsr_ray.rollout.summary import summarise
from mmsr_ray.types import (
    Answer,
    ImageSearch,
    Malformed,
    Need,
    Outcome,
    Reward,
    TextSearch,
    ToolFailure,
    ToolKind,
    ToolResult,
    Trajectory,
    Turn,
)
from tests.observability.episodes import episode

FOUND = Turn("", TextSearch("x"), 3, True, ToolResult(ToolKind.TEXT, "x", ()))
NOTHING = Turn("", TextSearch("x"), 3, True, ToolResult(ToolKind.TEXT, "x", failure=ToolFailure.NO_RESULTS))
BROKEN = Turn("", ImageSearch(), 3, True, ToolResult(ToolKind.IMAGE, "sha", failure=ToolFailure.TIMEOUT, detail="10 s"))
REFUSED = Turn("", ImageSearch(), 3, True)
ANSWER = Turn("", Answer("Bob"), 3, True)
JUNK = Turn("", Malformed("empty turn"), 3, True)
CUT = Turn("", Malformed(TRUNCATED), 3, False)
OK, POLICY, INFRA = Outcome.OK, Outcome.POLICY_ERROR, Outcome.INFRA_ERROR


def ended(outcome: Outcome, correct: bool | None, *turns: Turn) -> Trajectory:
    _, trajectory = episode("q", Need.TEXT, bool(correct), turns)
    return replace(trajectory, outcome=outcome, reward=None if correct is None else Reward(0.0, correct, True, 0))


def stored(folder: Path, trajectory: Trajectory) -> StoredTrajectory:
    write_trajectories(folder / "test-on_demand.parquet", [(episode("q", Need.TEXT, True)[0], trajectory)], split="test")
    (found,) = read_trajectories(folder / "test-on_demand.parquet")
    return found


WAYS = [
    (ended(OK, True, FOUND, ANSWER), "none", "correct_search"),
    (ended(OK, True, ANSWER), "none", "correct_no_search"),
    (ended(OK, False, FOUND, ANSWER), "wrong_after_search", "wrong_search"),
    (ended(OK, False, NOTHING, ANSWER), "wrong_after_search", "wrong_search"),
    (ended(OK, False, ANSWER), "wrong_without_search", "wrong_no_search"),
    (ended(POLICY, False, JUNK), "malformed", "wrong_no_search"),
    (ended(POLICY, False, FOUND, JUNK), "malformed", "wrong_search"),
    (ended(POLICY, False, FOUND, REFUSED), "over_budget", "wrong_search"),
    (ended(POLICY, False, CUT), "too_long", "wrong_no_search"),
    (ended(POLICY, False, FOUND), "too_long", "wrong_search"),  # what was found left no room
    (ended(POLICY, False), "too_long", "wrong_no_search"),
    (ended(INFRA, None, FOUND, BROKEN), "tool_failure", None),
    (ended(INFRA, None, FOUND), "infra", None),  # the engine
    (ended(INFRA, None, FOUND, ANSWER), "infra", None),  # the judge
    (ended(INFRA, None), "infra", None),
]


@pytest.mark.parametrize(("trajectory", "error", "behaves"), WAYS)
def test_class_of_every_end(tmp_path: Path, trajectory: Trajectory, error: str, behaves: str | None) -> None:
    found = stored(tmp_path, trajectory)
    assert (error_type(found), behaviour_class(found)) == (error, behaves)
    (row,) = read_source(tmp_path / "test-on_demand.parquet", tmp_path).rows
    assert (row.error, row.behaviour) == (error, behaves), "the catalogue reads fewer columns"


def test_every_class_is_named_and_met() -> None:
    assert {error for _, error, _ in WAYS} == set(ERRORS)
    assert {behaves for _, _, behaves in WAYS if behaves} == set(BEHAVIOURS)


def test_behaviour_is_that_of_the_metrics(tmp_path: Path) -> None:
    sample, _ = episode("q", Need.TEXT, True)
    scored = [trajectory for trajectory, _, behaves in WAYS if behaves]
    shares = behaviour([summarise(trajectory, sample) for trajectory in scored])
    assert shares == {name: sum(behaves == name for _, _, behaves in WAYS) / len(scored) for name in BEHAVIOURS}
