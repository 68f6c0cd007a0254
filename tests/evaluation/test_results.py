"""What run folders hold is read question by question, and whatever makes a comparison unfair is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmsr_ray.evaluation.results import Evaluated, not_comparable, read_evaluated
from mmsr_ray.evaluation.trajectories import write_trajectories
from mmsr_ray.types import Need
from tests.evaluation.runs import answered, answers, write_run
from tests.observability.episodes import episode

GIVEN = answers([(True, True), (False, False), (None, True), (True, False)])


def only(folder: Path) -> Evaluated:
    (found,) = read_evaluated(folder)
    return found


def test_a_run_is_read_question_by_question(tmp_path: Path) -> None:
    found = only(write_run(tmp_path / "a", {("fvqa_test", "on_demand"): GIVEN}))
    assert (found.run, found.model, found.benchmark, found.workflow) == ("a", "ours", "fvqa_test", "on_demand")
    assert {uid: (answer.correct, answer.searches > 0) for uid, answer in found.answers.items()} == GIVEN
    assert (found.asked, found.lost, found.complete, found.search_limit) == (4, 0, True, 2)
    assert found.questions["q1"] == "Who is q1?"


def test_rows_of_before_are_named_by_their_name(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "old", {("test", "rag"): GIVEN})
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("model", "benchmark", "workflow"):
        del summary["rows"][0][key]
    summary["rows"][0]["name"] = "after RL, rag"
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "trajectories" / "test-rag.parquet").rename(folder / "trajectories" / "after_RL-rag.parquet")
    found = only(folder)
    assert (found.model, found.benchmark, found.workflow, len(found.answers)) == ("after RL", "test", "rag", 4)


def test_a_question_asked_twice_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", {("x", "rag"): GIVEN})
    write_trajectories(folder / "trajectories" / "x-rag.parquet", [answered("q0", True, True)] * 2, split="x")
    with pytest.raises(ValueError, match="holds question q0 twice"):
        read_evaluated(folder)


def test_the_same_under_the_same_conditions_is_comparable(tmp_path: Path) -> None:
    one = only(write_run(tmp_path / "a", {("x", "rag"): GIVEN}))
    moved = ["tools.text_search.url=http://127.0.0.1:4444", "tools.text_search.concurrency=3", "run.seed=7", "tools.cache.dir=elsewhere"]
    other = only(write_run(tmp_path / "b", {("x", "rag"): GIVEN}, model="theirs", overrides=moved))
    assert not_comparable(one, other) == []


CHAT = ["tools.judge.kind=chat", "tools.judge.url=https://judge.example/v1", "tools.judge.model=gpt-4o"]
OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"given": answers([(True, True)] * 3)}, "other questions: 4 and 3 of x"),
    ({"given": {f"p{n}": (True, True) for n in range(4)}}, "other questions: 4 of 4 were asked by one only"),
    ({"overrides": ["reward.match=subem"]}, "other judge: reward.match 'em' and 'subem'"),
    ({"overrides": CHAT}, "tools.judge.kind None and 'chat'"),
    ({"overrides": ["tools.text_search.kind=serper"]}, "other search: tools.text_search.kind 'serpapi' and 'serper'"),
    ({"overrides": ["agent.search_limit=3"]}, "other search: agent.search_limit 2 and 3"),
]


@pytest.mark.parametrize(("changes", "reason"), OTHERS)
def test_what_makes_it_unfair_is_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    one = only(write_run(tmp_path / "a", {("x", "rag"): GIVEN}))
    other = only(write_run(tmp_path / "b", {("x", "rag"): changes.get("given", GIVEN)}, overrides=changes.get("overrides", ())))
    assert len(not_comparable(one, other)) == 1
    assert reason.replace("None", "'none'") in not_comparable(one, other)[0]


def test_a_search_stack_does_not_matter_to_who_does_not_search(tmp_path: Path) -> None:
    one = only(write_run(tmp_path / "a", {("x", "direct"): GIVEN}))
    other = only(write_run(tmp_path / "b", {("x", "direct"): GIVEN}, overrides=["tools.text_search.kind=serper", "agent.topk=3"]))
    assert not_comparable(one, other) == []


def test_the_same_ids_of_other_questions(tmp_path: Path) -> None:
    one = only(write_run(tmp_path / "a", {("x", "rag"): GIVEN}))
    folder = write_run(tmp_path / "b", {("x", "rag"): GIVEN})
    pairs = [answered(uid, *answer, "rag") for uid, answer in GIVEN.items()]
    sample, trajectory = episode("other", Need.TEXT, True)
    pairs[0] = sample, replace(trajectory, uid="q0")
    write_trajectories(folder / "trajectories" / "x-rag.parquet", pairs, split="x")
    assert not_comparable(one, only(folder)) == ["other questions: 1 ids stand for other texts"]


def test_questions_that_infrastructure_lost_are_no_other_questions(tmp_path: Path) -> None:
    one = only(write_run(tmp_path / "a", {("x", "rag"): GIVEN}))
    folder = write_run(tmp_path / "b", {("x", "rag"): GIVEN})
    kept = [answered(uid, *answer, "rag") for uid, answer in GIVEN.items() if answer[0] is not None]
    write_trajectories(folder / "trajectories" / "x-rag.parquet", kept, split="x")
    assert only(folder).complete and not_comparable(one, only(folder)) == []


def test_without_a_config_nothing_is_known(tmp_path: Path) -> None:
    one = only(write_run(tmp_path / "a", {("x", "rag"): GIVEN}))
    folder = write_run(tmp_path / "b", {("x", "rag"): GIVEN})
    (folder / "config.yaml").unlink()
    assert "b has no config.yaml" in not_comparable(one, only(folder))[0]
