"""Answers on disk: kept through a kill, for one process and one config, errors as sentences."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mmsr_ray.config import ConfigError
from mmsr_ray.evaluation import answers as module
from mmsr_ray.evaluation.answers import Answer, Answers, AnswersError
from mmsr_ray.evaluation.trajectories import read_trajectories, trajectory_row, write_rows
from mmsr_ray.types import Need, Outcome

from .test_metrics import summary
from .test_trajectories import SAMPLE, trajectory

SETTINGS = {
    "agent": {"topk": 5, "deadline_seconds": 60.0},
    "rollout": {"num_runners": 1},
    "tools": {"reader": {"kind": "jina", "url": "a"}},
}


def answer(uid: str, workflow: str = "direct", **changes: Any) -> Answer:
    return Answer("test", workflow, summary(uid=uid, need=Need.MIX, **changes), trajectory_row(SAMPLE, trajectory(), split="test"))


def test_what_was_added_comes_back_whole(tmp_path: Path) -> None:
    given = [answer("b", correct=True), answer("a"), answer("a", "rag")]
    with Answers(tmp_path / "run" / "answers.sqlite", SETTINGS) as answers:
        answers.add(given)
    with Answers(tmp_path / "run" / "answers.sqlite", SETTINGS) as answers:
        assert list(answers.summaries("test", "direct").items()) == [("a", given[1].summary), ("b", given[0].summary)]
        assert answers.answered("test", "direct") == {"a", "b"} and answers.answered("other", "direct") == set()
        row = answers.row("test", "rag", "a")
    assert row == given[2].row | {"picture": None}
    write_rows(tmp_path / "t.parquet", [row | {"picture": b"png"}])
    (stored,) = read_trajectories(tmp_path / "t.parquet")
    assert (stored.picture, stored.turns[0].hits[0].thumbnail, stored.need) == (b"png", b"thumb", "mix_required")


def test_a_question_that_infrastructure_broke_is_open_until_it_has_an_answer(tmp_path: Path) -> None:
    with Answers(tmp_path / "a.sqlite", SETTINGS) as answers:
        answers.add([answer("a", outcome=Outcome.INFRA_ERROR), answer("b", outcome=Outcome.POLICY_ERROR)])
        assert answers.answered("test", "direct") == {"b"}
        assert answers.summaries("test", "direct").keys() == {"a", "b"}
        answers.add([answer("a")])
        assert answers.answered("test", "direct") == {"a", "b"}
        assert answers.summaries("test", "direct")["a"].outcome is Outcome.OK


WRITER = """
import sys
from pathlib import Path
from tests.evaluation.test_answers import SETTINGS, Answers, answer
with Answers(Path(sys.argv[1]), SETTINGS) as answers:
    for number in range(100_000):
        answers.add([answer(str(number))])
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()
"""


@pytest.mark.heavy
def test_a_kill_loses_nothing_that_add_returned_from(tmp_path: Path) -> None:
    file = tmp_path / "a.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert writer.stdout is not None
    told = [writer.stdout.readline().strip() for _ in range(50)]
    writer.send_signal(signal.SIGKILL)
    told += writer.stdout.read().split("\n")[:-1]
    writer.wait(timeout=10)
    with Answers(file, SETTINGS) as answers:
        kept = answers.answered("test", "direct")
        assert kept >= set(told) and len(kept) <= len(told) + 1
        answers.add([answer("more")])


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsr_ray.transactions.BUSY_SECONDS", 0.1)
    with Answers(tmp_path / "a.sqlite", SETTINGS), pytest.raises(AnswersError, match=r"a\.sqlite: another process holds it"):
        Answers(tmp_path / "a.sqlite", SETTINGS)
    with Answers(tmp_path / "a.sqlite", SETTINGS) as answers:
        assert not answers.answered("test", "direct")


def test_a_full_disk_is_one_sentence_and_what_was_kept_stays(tmp_path: Path) -> None:
    with Answers(tmp_path / "a.sqlite", SETTINGS) as answers:
        answers.add([answer("a")])
        (pages,) = answers._db.execute("pragma page_count").fetchone()
        answers._db.execute(f"pragma max_page_count = {pages + 1}")  # SQLite's own way to a disk that is full
        with pytest.raises(AnswersError, match=r"disk is full.*: make room"):
            answers.add([answer(str(number)) for number in range(50)])
        assert answers.answered("test", "direct") == {"a"}


def test_what_is_no_database_is_told_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_text("these are not answers " * 100)
    with pytest.raises(AnswersError, match=r"no sound database.*move it away"):
        Answers(tmp_path / "a.sqlite", SETTINGS)
    assert (tmp_path / "a.sqlite").read_text().startswith("these")
    (tmp_path / "file").touch()
    with pytest.raises(AnswersError, match="make it writable"):
        Answers(tmp_path / "file" / "a.sqlite", SETTINGS)


def test_another_config_is_refused_key_by_key_and_what_may_differ_is_let_in(tmp_path: Path) -> None:
    Answers(tmp_path / "a.sqlite", SETTINGS).__exit__(None, None, None)
    patient = {
        "agent": {"topk": 5, "deadline_seconds": 9.0},
        "rollout": {"num_runners": 8},
        "tools": {"reader": {"kind": "jina", "url": "b"}},
    }
    with Answers(tmp_path / "a.sqlite", patient) as answers:
        assert answers.answered("test", "direct") == set()
    other = SETTINGS | {"agent": {"topk": 3, "deadline_seconds": 60.0}, "tools": {"reader": {"kind": "local", "url": "a"}}}
    with pytest.raises(ConfigError, match=r"agent\.topk was 5 and is 3, tools\.reader\.kind was 'jina' and is 'local'; set it as it was"):
        Answers(tmp_path / "a.sqlite", other)


def test_a_benchmark_keeps_its_questions(tmp_path: Path) -> None:
    with Answers(tmp_path / "a.sqlite", SETTINGS) as answers:
        answers.belongs_to("test", "digest")
        answers.belongs_to("other", "another")
        answers.belongs_to("test", "digest")
        with pytest.raises(ConfigError, match="other questions of the name 'test'"):
            answers.belongs_to("test", "another")


def test_rows_of_an_earlier_schema_are_read_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = pa.schema([field for field in module.SCHEMA if field.name != "verdict"])
    with monkeypatch.context() as past:
        past.setattr(module, "SCHEMA", earlier)
        past.setattr("mmsr_ray.evaluation.trajectories.SCHEMA", earlier)
        with Answers(tmp_path / "a.sqlite", SETTINGS) as answers:
            answers.add([answer("a")])
    with Answers(tmp_path / "a.sqlite", SETTINGS) as answers:
        row = answers.row("test", "direct", "a")
    assert "verdict" not in row and row["question"] == SAMPLE.question
    assert write_rows(tmp_path / "t.parquet", [row]) == 1
