"""Who is best, what is more than chance, and what is kept out of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.evaluation.results import read_runs
from mmsr_ray.evaluation.standings import holm, standings
from tests.evaluation.runs import answers, write_run

N = 60
GOOD, BAD = [(True, True)] * N, [(True, False)] * 20 + [(False, False)] * (N - 20)
NEARLY = [(False, True), *GOOD[1:]]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    ours = {("x", "on_demand"): answers(GOOD), ("x", "direct"): answers(BAD), ("y", "on_demand"): answers(BAD)}
    theirs = {("x", "on_demand"): answers(NEARLY), ("y", "on_demand"): answers(NEARLY)}
    odd = {("x", "on_demand"): answers(GOOD)}
    return [
        write_run(tmp_path / "ours", ours),
        write_run(tmp_path / "theirs", theirs, model="theirs"),
        write_run(tmp_path / "odd", odd, model="odd", overrides=["reward.match=subem"]),
    ]


def test_lines_averages_and_the_best(runs: list[Path]) -> None:
    board = standings(read_runs(runs))
    assert board.benchmarks == ["x", "y"] and board.domains == {} and list(board.blocks) == ["direct", "on_demand"]
    ours, theirs, odd = board.blocks["on_demand"]
    assert (ours.model, theirs.model, odd.model) == ("ours", "theirs", "odd")
    assert ours.accuracy == pytest.approx((1 + 20 / N) / 2) and ours.search_ratio == pytest.approx((0.5 + 0) / 2)
    assert odd.accuracy is None and board.blocks["direct"][0].accuracy is None, "one benchmark is missing"
    assert ours.cells["x"].best and not theirs.cells["x"].best and theirs.cells["x"].level
    assert theirs.cells["y"].best and not ours.cells["y"].level
    assert theirs.cells["y"].low is not None and theirs.cells["y"].low < (N - 1) / N


def test_averages_over_the_domains_of_the_paper(tmp_path: Path) -> None:
    asked = {"fvqa_test": GOOD, "infoseek": BAD, "livevqa": BAD, "mine": BAD}
    board = standings(read_runs([write_run(tmp_path / "run", {(name, "rag"): answers(given) for name, given in asked.items()})]))
    assert board.domains == {"in-domain": ["fvqa_test", "infoseek"], "out-of-domain": ["livevqa"]}
    (line,) = board.blocks["rag"]
    assert {name: mean[0] for name, mean in line.domains.items()} == pytest.approx({"in-domain": (1 + 20 / N) / 2, "out-of-domain": 20 / N})


def test_what_is_not_comparable_is_never_the_best(runs: list[Path]) -> None:
    odd = standings(read_runs(runs)).blocks["on_demand"][2].cells["x"]
    assert not odd.best and not odd.level
    assert odd.reasons == ["other judge: reward.match 'em' and 'subem'"]


def test_pairs_are_of_comparable_evaluations_and_corrected(runs: list[Path]) -> None:
    board = standings(read_runs(runs))
    found = {(pair.benchmark, pair.first.model, pair.first.workflow, pair.second.model): pair for pair in board.pairs}
    assert set(found) == {
        ("x", "ours", "on_demand", "ours"), ("x", "ours", "on_demand", "theirs"), ("y", "ours", "on_demand", "theirs")
    }  # fmt: skip
    assert all(pair.p >= pair.found["p_value"] for pair in board.pairs)
    against_direct = found["x", "ours", "on_demand", "ours"]
    assert against_direct.significant and against_direct.found["accuracy"]["difference"] == pytest.approx(20 / N - 1)
    assert not found["x", "ours", "on_demand", "theirs"].significant


def test_some_of_the_answers_are_not_enough_for_a_test(tmp_path: Path) -> None:
    given_ = {("x", "on_demand"): answers(GOOD), ("x", "direct"): answers(BAD)}
    board = standings(read_runs([write_run(tmp_path / "a", given_, keep=12)]))
    cells = [line.cells["x"] for block in board.blocks.values() for line in block]
    assert board.pairs == [] and not any(cell.reasons or cell.evaluated.complete for cell in cells)
    assert [cell.best for cell in cells] == [False, True]


def test_runs_of_one_name_are_told_apart_and_one_run_counts_once(tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / part / "eval", {("x", "rag"): answers(given_)}) for part, given_ in (("a", GOOD), ("b", BAD)))
    (block,) = standings(read_runs([one, other, one])).blocks.values()
    assert [line.run for line in block] == [str(one), str(other)]


def test_pairs_grow_with_the_runs_and_not_with_their_square(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r{n}", {("x", "rag"): answers(GOOD[n:] + BAD[:n]), ("x", "direct"): answers(BAD)}) for n in range(6)]
    board = standings(read_runs(runs))
    best = next(line.cells["x"].evaluated for line in board.blocks["rag"] if line.cells["x"].best)
    assert best.run == "r0"
    assert sum(pair.first is best or pair.second is best for pair in board.pairs) == 11
    assert len(board.pairs) == 11 + 5 + 5  # with the best direct one, and rag with direct of each other run


def test_who_does_not_search_stands_beside_any_search_stack(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", {("x", "direct"): answers(BAD), ("x", "rag"): answers(GOOD)})
    other = write_run(
        tmp_path / "b", {("x", "rag"): answers(GOOD), ("x", "direct"): answers(BAD)}, overrides=["tools.text_search.kind=serper"]
    )
    board = standings(read_runs([one, other]))
    reasons = {(line.run, line.workflow): line.cells["x"].reasons for block in board.blocks.values() for line in block}
    assert not reasons["a", "rag"] and not reasons["a", "direct"] and not reasons["b", "direct"]
    assert reasons["b", "rag"] == ["other search: tools.text_search.kind 'serpapi' and 'serper'"]


def test_evaluations_while_training_are_no_models(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", {("x", "rag"): answers(GOOD)})
    summary = json.loads((folder / "summary.json").read_text())
    summary["rows"].append({**summary["rows"][0], "model": "at step 10", "step": 10})
    (folder / "summary.json").write_text(json.dumps(summary))
    assert [line.model for line in standings(read_runs([folder])).blocks["rag"]] == ["ours"]


def test_nothing_at_all() -> None:
    assert standings([]).blocks == {}


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    assert not p_values or min(corrected) == min(1.0, len(p_values) * min(p_values))
    ordered = [c for _, c in sorted(zip(p_values, corrected, strict=True))]
    assert ordered == sorted(ordered)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
