"""An evaluation over real Ray actors that answer, die, hang and come back. The actors stand in for an engine, not for Ray."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import ray

from mmsr_ray.evaluation import pool, run
from mmsr_ray.evaluation.run import Question, ask, evaluate, fetch
from mmsr_ray.rollout.bunches import Bunches
from mmsr_ray.tools.errors import BudgetSpent
from mmsr_ray.tools.tape import TapeMiss
from mmsr_ray.types import Sample, TrajectorySummary

from .test_metrics import summary

pytestmark = pytest.mark.heavy


class Answerer(Bunches):
    """Answers every question by its uid; a question's text may say what goes wrong. `folder` remembers across restarts."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    async def ping(self) -> bool:
        if (self.folder / "cannot start").exists():
            raise RuntimeError("no engine")
        return True

    async def evaluate_sample(self, sample: Sample, workflow: str) -> tuple[TrajectorySummary, tuple[str, str]]:
        first = not (self.folder / sample.uid).exists()
        (self.folder / sample.uid).touch()
        match sample.question:
            case "kill":
                os._exit(1)
            case "kill once" if first:
                os._exit(1)
            case "hang":
                try:
                    await asyncio.sleep(1000)
                finally:
                    (self.folder / f"{sample.uid} ended").touch()
            case "freeze once" if first:
                time.sleep(3)  # noqa: ASYNC251  (that is the trouble)
            case "broke":
                return summary(uid=sample.uid, out_of_money=True), (sample.uid, workflow)
            case "not recorded":
                raise TapeMiss("the tape in here has no text search 'x'")
            case "raise":
                raise RuntimeError("a bug")
        await asyncio.sleep(0.02 * (int(sample.uid) % 3))  # so that answers arrive out of order
        return summary(uid=sample.uid, correct=True), (sample.uid, workflow)


def start(folder: Path, restarts: int = 0) -> Any:
    return ray.remote(Answerer).options(num_cpus=0, max_concurrency=100, max_restarts=restarts).remote(str(folder))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "REST_SECONDS", 0.5)
        patch.setattr(run, "SLACK_SECONDS", 0.5)
        yield
    ray.shutdown()


def questions(count: int, **troubles: str) -> list[Sample]:
    """`troubles`: q<number>="kill" and the like."""
    return [Sample(str(i), troubles.get(f"q{i}", "fine"), b"", ("a",)) for i in range(count)]


def test_order_kept_and_everything_answered(cluster: None, tmp_path: Path) -> None:
    runners = [start(tmp_path) for _ in range(2)]
    result = evaluate(
        runners,
        iter(questions(30)),
        "rag",
        inflight_per_runner=4,
        sample_seconds=30,
        deadline_seconds=60,
        keep=3,
    )
    assert [entry.uid for entry in result.entries] == [str(i) for i in range(30)]
    assert [s.uid for s in result.summaries] == [str(i) for i in range(30)]
    assert [pair for _, pair in result.kept()] == [("0", "rag"), ("1", "rag"), ("2", "rag")]
    assert all(entry.held is None for entry in result.entries[3:])
    row = result.row(name="rag", split="test", search_limit=2)
    assert (row["questions"], row["accuracy"], row["infra_errors"]) == (30, 1.0, 0)


def test_a_runner_that_dies_is_restarted_and_its_questions_are_asked_again(cluster: None, tmp_path: Path) -> None:
    alone = start(tmp_path, restarts=-1)
    result = evaluate([alone], questions(12, q5="kill once"), "direct", inflight_per_runner=4, sample_seconds=30, deadline_seconds=90)
    assert [entry.summary is not None for entry in result.entries] == [True] * 12


def test_a_runner_that_is_silent_is_left_alone_until_it_answers_again(cluster: None, tmp_path: Path) -> None:
    alone = start(tmp_path)
    ray.get(alone.ping.remote(), timeout=60)
    result = evaluate([alone], questions(6, q3="freeze once"), "direct", inflight_per_runner=4, sample_seconds=1, deadline_seconds=90)
    assert [entry.summary is not None for entry in result.entries] == [True] * 6
    assert result.seconds > 1.5  # what was asked beside the frozen one is asked again, too


def test_failures_are_counted_apart_and_never_wrong_answers(cluster: None, tmp_path: Path) -> None:
    runners = [start(tmp_path, restarts=-1) for _ in range(2)]
    result = evaluate(
        runners, questions(8, q2="hang", q6="raise"), "direct", inflight_per_runner=2, sample_seconds=2, deadline_seconds=60, attempts=2
    )
    assert [entry.uid for entry in result.failures] == ["2", "6"]
    assert "no answer within 2 s" in result.failures[0].failure
    assert "a bug" in result.failures[1].failure
    row = result.row(name="direct", split="test", search_limit=2)
    assert (row["questions"], row["accuracy"], row["infra_errors"]) == (6, 1.0, 2)


def test_without_money_there_is_no_result_at_all(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(BudgetSpent, match="budget_usd"):
        evaluate(
            [start(tmp_path)], questions(9, q4="broke", q5="hang"), "rag", inflight_per_runner=4, sample_seconds=30, deadline_seconds=60
        )


def test_a_replay_that_lacks_a_call_ends_it_and_names_the_question(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(TapeMiss, match=r"^question 4: the tape in here has no text search 'x'$"):
        evaluate(
            [start(tmp_path)],
            questions(9, q4="not recorded", q5="hang"),
            "rag",
            inflight_per_runner=4,
            sample_seconds=30,
            deadline_seconds=60,
        )


def test_dead_runners_end_it_early_and_the_deadline_ends_it_anyway(cluster: None, tmp_path: Path) -> None:
    started = time.monotonic()
    mortal = start(tmp_path)
    result = evaluate([mortal], questions(6, q0="kill"), "direct", inflight_per_runner=1, sample_seconds=30, deadline_seconds=300)
    assert time.monotonic() - started < 60
    assert {entry.failure for entry in result.entries} == {"every rollout runner is dead"}

    slow = start(tmp_path)
    ray.get(slow.ping.remote(), timeout=60)
    result = evaluate([slow], questions(6, q0="hang", q1="hang"), "direct", inflight_per_runner=2, sample_seconds=100, deadline_seconds=2)
    assert [entry.uid for entry in result.entries] == [str(i) for i in range(6)]
    assert len(result.failures) == 6
    assert 2 <= result.seconds < 10
    until = time.monotonic() + 10
    while not (tmp_path / "1 ended").exists():
        assert time.monotonic() < until, "what nobody waits for any more goes on"
        time.sleep(0.05)
    with pytest.raises(ValueError, match="at least one runner"):
        evaluate([], [], "direct", inflight_per_runner=1, sample_seconds=1, deadline_seconds=1)


def test_a_runner_that_comes_back_and_cannot_start_is_dead_too(cluster: None, tmp_path: Path) -> None:
    alone = start(tmp_path, restarts=-1)
    ray.get(alone.ping.remote(), timeout=60)
    (tmp_path / "cannot start").touch()
    result = evaluate([alone], questions(4, q0="kill"), "direct", inflight_per_runner=1, sample_seconds=30, deadline_seconds=300)
    assert {entry.failure for entry in result.entries} == {"every rollout runner is dead"}
    assert result.seconds < 120


def test_questions_of_several_workflows_end_as_they_come_and_a_reader_that_stops_leaves_nothing_open(cluster: None, tmp_path: Path) -> None:
    mixed = [Question(sample, workflow, "b") for sample in questions(5) for workflow in ("direct", "rag")]
    landings = list(ask([start(tmp_path)], mixed, inflight_per_runner=3, sample_seconds=30, deadline_seconds=60))
    ended = [one for landed in landings for one in landed]
    assert sorted((one.number, one.question.sample.uid, one.question.workflow) for one in ended) == [
        (number, question.sample.uid, question.workflow) for number, question in enumerate(mixed)
    ]
    for one in ended:
        assert one.summary is not None
        assert fetch([one.held]) == [(one.summary.uid, one.question.workflow)]

    endless = (Question(sample, "direct") for _ in count() for sample in questions(3))
    stream = ask([start(tmp_path)], endless, inflight_per_runner=3, sample_seconds=30, deadline_seconds=60)
    assert next(stream)
    stream.close()
