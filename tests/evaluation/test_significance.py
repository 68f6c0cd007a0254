"""Tests and intervals against published numbers, and what must hold for any two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr_ray.evaluation.significance import Result, compare, difference_interval, mcnemar, of_stored, of_summaries, over_seeds
from mmsr_ray.evaluation.trajectories import read_trajectories, write_trajectories
from mmsr_ray.types import Outcome
from tests.evaluation.test_metrics import summary
from tests.evaluation.test_trajectories import SAMPLE, failed, trajectory

COUNTS = st.integers(0, 40)
CELLS = st.tuples(COUNTS, COUNTS, COUNTS, COUNTS)
QUESTION = st.tuples(st.sampled_from([None, True, False]), st.integers(0, 2))


def run(outcomes: list[tuple[bool | None, int]], prefix: str = "q") -> list[Result]:
    return [Result(f"{prefix}{i}", correct, searches) for i, (correct, searches) in enumerate(outcomes)]


def test_exact_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)


@settings(deadline=None)
@given(COUNTS, COUNTS)
def test_mcnemar_is_symmetric_and_a_probability(first_only: int, second_only: int) -> None:
    p = mcnemar(first_only, second_only)
    assert p == pytest.approx(mcnemar(second_only, first_only))
    assert 0 < p <= 1
    assert p >= min(1.0, 2.0 ** (1 - first_only - second_only)) * (1 - 1e-9)


def test_interval_of_the_difference_against_newcombe() -> None:
    """Newcombe 1998, table II: 36, 12, 2, 0 gives 0.0569 to 0.3404 for the first minus the second."""
    low, high = difference_interval(36, 12, 2, 0)
    assert low == pytest.approx(-0.3404, abs=5e-5)
    assert high == pytest.approx(-0.0569, abs=5e-5)
    assert difference_interval(0, 0, 0, 0) == (None, None)


@settings(deadline=None)
@given(CELLS)
def test_interval_of_the_difference_contains_it_and_turns_with_the_runs(cells: tuple[int, int, int, int]) -> None:
    both_right, first_only, second_only, both_wrong = cells
    low, high = difference_interval(*cells)
    if low is None or high is None:
        assert sum(cells) == 0
        return
    assert -1 <= low <= (second_only - first_only) / sum(cells) <= high <= 1
    turned = difference_interval(both_right, second_only, first_only, both_wrong)
    assert turned == (pytest.approx(-high), pytest.approx(-low))


def test_more_questions_narrow_the_interval() -> None:
    widths = [
        high - low for low, high in [(*difference_interval(3 * k, k, 2 * k, 4 * k),) for k in (1, 10, 100)] if low is not None and high
    ]
    assert widths == sorted(widths, reverse=True)
    assert len(widths) == 3


def test_a_comparison_by_hand() -> None:
    first = run([(True, 2), (True, 2), (False, 2), (False, 1), (None, 0), (True, 0)])
    second = [*run([(True, 0), (False, 1), (True, 2), (True, 0), (True, 2)]), Result("other", True, 0)]
    found = compare(first, second, search_limit=2)
    assert found["questions"] == 4
    assert found["left_out"] == {"only_first": 1, "only_second": 1, "broken": 1}
    assert [found[key] for key in ("both_right", "first_only", "second_only", "both_wrong")] == [1, 1, 2, 0]
    assert found["p_value"] == pytest.approx(1.0)
    assert (found["accuracy"]["first"], found["accuracy"]["second"], found["accuracy"]["difference"]) == (0.5, 0.75, 0.25)
    assert (found["search_ratio_calls"]["first"], found["search_ratio_calls"]["second"]) == (7 / 8, 3 / 8)
    assert (found["search_ratio_responses"]["first"], found["search_ratio_responses"]["difference"]) == (1.0, -0.5)


def test_runs_without_a_question_in_common() -> None:
    found = compare(run([(True, 0)], "a"), run([(True, 0)], "b"), search_limit=2)
    assert (found["questions"], found["p_value"]) == (0, None)
    assert set(found["accuracy"].values()) == set(found["search_ratio_calls"].values()) == {None}
    with pytest.raises(ValueError, match="question q0 twice"):
        compare(run([(True, 0)]) * 2, [], search_limit=2)


@settings(deadline=None)  # other jobs share the machine
@given(st.lists(st.tuples(QUESTION, QUESTION), max_size=40))
def test_what_holds_for_any_two_runs(pairs: list[tuple[Any, Any]]) -> None:
    first, second = run([a for a, _ in pairs]), run([b for _, b in pairs])
    found = compare(first, second, search_limit=2)
    assert found == compare(list(reversed(first)), second, search_limit=2)
    assert found["questions"] + found["left_out"]["broken"] == len(pairs)
    assert sum(found[key] for key in ("both_right", "first_only", "second_only", "both_wrong")) == found["questions"]
    for key in ("accuracy", "search_ratio_calls", "search_ratio_responses"):
        if found["questions"]:
            assert -1 <= found[key]["low"] <= found[key]["difference"] <= found[key]["high"] <= 1
    same = compare(first, first, search_limit=2)
    assert same["p_value"] in (1.0, None)
    assert same["search_ratio_calls"]["low"] in (0.0, None)


def test_results_of_summaries_and_of_files(tmp_path: Path) -> None:
    assert of_summaries([summary(1, 1, True), summary(outcome=Outcome.INFRA_ERROR, uid="v")]) == [
        Result("u", True, 2),
        Result("v", None, 0),
    ]
    write_trajectories(tmp_path / "t.parquet", [(SAMPLE, trajectory()), (SAMPLE, failed())], split="test")
    assert of_stored(read_trajectories(tmp_path / "t.parquet")) == [Result("u1", True, 2), Result("u1", None, 1)]


def test_over_seeds() -> None:
    """t with two degrees of freedom is 4.303 at 97.5 %."""
    found = over_seeds([0.5, 0.6, 0.7])
    assert (found["seeds"], found["mean"]) == (3, pytest.approx(0.6))
    assert found["low"] == pytest.approx(0.6 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)
    assert over_seeds([0.5]) == {"seeds": 1, "mean": 0.5, "low": None, "high": None}
    with pytest.raises(ValueError, match="at least one"):
        over_seeds([])


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_interval_over_seeds_contains_the_mean(values: list[float]) -> None:
    found = over_seeds(values)
    assert found["low"] <= found["mean"] <= found["high"]  # type: ignore[operator]
