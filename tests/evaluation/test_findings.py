"""Each finding holds exactly where its rule is met with every seed, and keeps the numbers by seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from mmsr_ray.evaluation.findings import SeedResults, as_dict, findings


def row(accuracy: float, ratio: float, no_search: float = 0.3) -> dict[str, Any]:
    """A row of metrics.measure, as far as findings look."""
    return {
        "accuracy": accuracy,
        "search_ratio_calls": ratio,
        "searches_per_question": 2 * ratio,
        "needed_search_ratio": 0.44,
        "behaviour": {"correct_no_search": no_search},
    }


def results(seed: int = 0) -> SeedResults:
    """A seed with which all five hold."""
    rows = {
        ("full", "before RL", "on_demand"): row(0.45, 0.48, no_search=0.1),
        ("full", "before RL", "rag"): row(0.90, 1.0),
        ("full", "after RL", "on_demand"): row(0.96, 0.45),
        ("full", "after RL", "rag"): row(0.93, 1.0),
        ("early", "before RL", "rag"): row(0.60, 1.0),
        ("early", "after RL", "rag"): row(0.80, 1.0),
        ("no penalty", "after RL", "on_demand"): row(0.95, 0.8),
        ("no balancing", "after RL", "on_demand"): row(0.90, 0.9),
        ("sft oracle", "after SFT", "on_demand"): row(0.90, 0.45),
        ("sft worldly", "after SFT", "on_demand"): row(0.60, 0.3),
    }
    skills = {"finds the page": 0.9, "says what it says": 0.9, "right in substance": 0.93, "most": 0.93}
    better = {**skills, "finds the page": 0.95}
    reading = {("full", "before RL"): skills, ("full", "after RL"): skills, ("early", "before RL"): skills, ("early", "after RL"): better}
    questions = {"full": 1120, "sft oracle": 2100, "sft worldly": 2200}
    return SeedResults(seed=seed, rows=rows, curves={}, reading=reading, questions=questions)


def spoilt(change: Callable[[Any, Any], object], seed: int = 1) -> SeedResults:
    made = copy.deepcopy(results(seed))
    change(made.rows, made.reading)
    return made


def held(*seeds: SeedResults) -> list[bool]:
    return [finding.held for finding in findings(seeds)]


def test_all_five_hold() -> None:
    found = findings([results(0), results(1), results(2)])
    assert [(f.id, f.held, f.verdict, f.reason, f.seeds) for f in found] == [(n, True, "held", "", [0, 1, 2]) for n in range(1, 6)]


SPOILERS = {
    1: lambda rows, reading: rows["full", "before RL", "rag"].update(accuracy=0.98),
    2: lambda rows, reading: reading["early", "after RL"].update({"says what it says": 0.8}),
    3: lambda rows, reading: rows["full", "after RL", "on_demand"]["behaviour"].update(correct_no_search=0.1),
    4: lambda rows, reading: rows["sft oracle", "after SFT", "on_demand"].update(accuracy=0.96),
    5: lambda rows, reading: rows["no penalty", "after RL", "on_demand"].update(search_ratio_calls=0.46),
}


@pytest.mark.parametrize("number", SPOILERS)
def test_a_finding_that_one_seed_does_not_show_has_not_held(number: int) -> None:
    found = findings([results(0), spoilt(SPOILERS[number])])
    assert [f.id for f in found if not f.held] == [number]
    assert found[number - 1].verdict == "held with some seeds"
    assert found[number - 1].reason
    assert findings([spoilt(SPOILERS[number])])[number - 1].verdict == "did not hold"


def test_too_few_searches_saved_is_no_saving() -> None:
    def spoil(rows: Any, reading: Any) -> None:
        rows["full", "after RL", "on_demand"].update(search_ratio_calls=0.75, searches_per_question=1.5)

    assert held(spoilt(spoil)) == [False, True, True, True, False]  # nor is it near what is needed


def test_a_tie_in_accuracy_is_enough_for_the_first() -> None:
    assert held(spoilt(lambda rows, reading: rows["full", "before RL", "rag"].update(accuracy=0.965)))[0]


def test_weights_that_lost_the_form_of_rag_answers_do_not_win_by_it() -> None:
    def spoil(rows: Any, reading: Any) -> None:
        rows["full", "after RL", "rag"].update(accuracy=0.0)
        reading["full", "after RL"] = reading["full", "after RL"] | {"right in substance": 0.99}

    assert not held(spoilt(spoil))[0]


def test_numbers_keep_every_seed_and_their_interval() -> None:
    worse = spoilt(lambda rows, reading: rows["full", "after RL", "on_demand"].update(accuracy=0.92))
    [number] = [n for n in findings([results(0), worse])[0].numbers if n.name == "accuracy on demand, after RL"]
    assert number.per_seed == [0.96, 0.92]
    assert number.mean == pytest.approx(0.94)
    assert number.low is not None and number.high is not None
    assert number.low < 0.92 < 0.96 < number.high  # two seeds say little
    assert as_dict(findings([worse])[0])["numbers"][0]["low"] is None  # one says nothing of the spread


def test_no_seed_and_a_missing_run_are_errors() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        findings([])
    with pytest.raises(KeyError, match="no penalty"):
        findings([spoilt(lambda rows, reading: rows.pop(("no penalty", "after RL", "on_demand")))])
