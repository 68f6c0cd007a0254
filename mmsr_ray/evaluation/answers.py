"""The answers of one evaluation in one SQLite file: what was answered is never asked again.

Promise: what `add` returned from survives a kill at any moment. One process at a time has the file
(`transactions.open_alone`). A file belongs to one set of settings: others are refused with the difference, key by key. Pictures
of questions are not kept, they lie in the benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from mmsr_ray.config import ConfigError
from mmsr_ray.differences import Settings
from mmsr_ray.evaluation import compatible
from mmsr_ray.evaluation.trajectories import SCHEMA, TrajectoryRow, pack, unpack
from mmsr_ray.transactions import open_alone, told_as, transaction
from mmsr_ray.types import Need, Outcome, TrajectorySummary

FILE = "answers.sqlite"
_TABLES = (
    "create table if not exists facts (name text primary key, value blob not null)",
    "create table if not exists answers (benchmark text, workflow text, uid text, outcome text not null, summary text not null,"
    " trajectory blob not null, primary key (benchmark, workflow, uid))",
)


class AnswersError(RuntimeError):
    """Answers cannot be kept or read; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`row`: of `trajectories.trajectory_row`; its picture is left out of the file."""

    benchmark: str
    workflow: str
    summary: TrajectorySummary
    row: TrajectoryRow


class Answers:
    """Open one with `with`. Not for several threads."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Makes the file where there is none. `settings`: the resolved config that answers follow from, as plain JSON values.

        Raises ConfigError for a file of other settings, AnswersError where another process has it or it cannot be used.
        """
        self._path = path
        with self._clear():
            self._db = open_alone(path, _TABLES)
        try:
            self._same_run(json.loads(json.dumps(settings)))
        except BaseException:
            self._db.close()
            raise
        self._schema = pa.ipc.read_schema(pa.py_buffer(self._fact("schema", SCHEMA.serialize().to_pybytes())))

    def _same_run(self, settings: Settings) -> None:
        saved = json.loads(self._fact("settings", json.dumps(settings).encode()))
        if said := compatible.refusal(saved, settings):
            raise ConfigError(f"{self._path} holds answers under another config: {said}")

    def belongs_to(self, benchmark: str, questions: str) -> None:
        """`questions`: their digest. Raises ConfigError when a benchmark of this name had others."""
        if self._fact(f"questions of {benchmark}", questions.encode()) != questions.encode():
            raise ConfigError(
                f"{self._path} holds answers to other questions of the name {benchmark!r}: put the benchmark back as it was, or choose another run.name"
            )

    def _fact(self, name: str, value: bytes) -> bytes:
        """What was written under this name first, which is `value` if nothing was."""
        with self._clear(), transaction(self._db):
            self._db.execute("insert or ignore into facts values (?, ?)", (name, value))
            return bytes(self._db.execute("select value from facts where name = ?", (name,)).fetchone()[0])

    # ------------------------------------------------------------------------------------------------ answers

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep them, all or none, on disk when this returns. A question that has an answer already gets the new one. Raises AnswersError."""
        rows = [
            (a.benchmark, a.workflow, a.summary.uid, a.summary.outcome.value, _to_text(a.summary), pack({**a.row, "picture": None}))
            for a in answers
        ]
        with self._clear(), transaction(self._db):
            self._db.executemany("insert or replace into answers values (?, ?, ?, ?, ?, ?)", rows)

    def answered(self, benchmark: str, workflow: str) -> set[str]:
        """uids of the questions that need not be asked again: all but those that infrastructure broke."""
        return {uid for uid, _ in self._select("uid, outcome", benchmark, workflow, f" and outcome <> '{Outcome.INFRA_ERROR.value}'")}

    def summaries(self, benchmark: str, workflow: str) -> dict[str, TrajectorySummary]:
        """By uid; broken ones too."""
        return {uid: _from_text(text) for uid, text in self._select("uid, summary", benchmark, workflow)}

    def row(self, benchmark: str, workflow: str, uid: str) -> TrajectoryRow:
        """The row of a question that is in `summaries`, its `picture` None."""
        ((packed,),) = self._select("trajectory", benchmark, workflow, " and uid = ?", uid)
        return unpack(packed, self._schema)

    def _select(self, what: str, benchmark: str, workflow: str, more: str = "", *values: str) -> list[tuple[Any, ...]]:
        with self._clear():
            query = f"select {what} from answers where benchmark = ? and workflow = ?{more} order by uid"
            return self._db.execute(query, (benchmark, workflow, *values)).fetchall()

    # ------------------------------------------------------------------------------------------------ the file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._db.close()

    def _clear(self) -> AbstractContextManager[None]:
        return told_as(AnswersError, self._path, "answers")


def _to_text(summary: TrajectorySummary) -> str:
    return json.dumps(asdict(summary))  # enums are strings


def _from_text(text: str) -> TrajectorySummary:
    values = json.loads(text)
    need = values["need"]
    return TrajectorySummary(**{**values, "outcome": Outcome(values["outcome"]), "need": None if need is None else Need(need)})
