"""Which episodes a run folder holds, without their pictures and texts. Reads parquet columns; writes nothing.

Promise: the order is that of the run: evaluations by time first, then training steps; rows of a file stay in its order, so
that a row's number is the same here and in `read_trajectories`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmsr_ray.evaluation.classes import behaviour_class, error_type

TRAJECTORIES = "trajectories"
STEP = re.compile(r"step_(\d+)")  # of a training step: keeping.Keeper; anything else is of an evaluation
TURN = ("action", "tool", "failure", "detail")
COLUMNS = ("uid", "index", "question", "need", "outcome", "answer", "reward", "correct", *(f"turns.list.element.{name}" for name in TURN))
UID_CHARS = 100
QUESTION_CHARS = 120
ANSWER_CHARS = 60


@dataclass(frozen=True, slots=True)
class Row:
    """What one can ask for among episodes."""

    uid: str  # its beginning, as of the next ones marked so
    index: int
    step: int | None
    question: str  # its beginning
    need: str | None
    outcome: str
    answer: str | None  # its beginning
    reward: float | None
    correct: bool | None
    searched: str  # "no", "image", "text" or "image text"
    behaviour: str | None  # of evaluation.classes.BEHAVIOURS
    error: str  # of evaluation.classes.ERRORS

    @property
    def verdict(self) -> str:
        return "none" if self.correct is None else "right" if self.correct else "wrong"


@dataclass(frozen=True)
class Source:
    """One file of episodes: of a training step, or of one workflow of an evaluation."""

    path: Path
    stem: str  # of its pages
    title: str
    step: int | None  # None for an evaluation
    rows: list[Row]

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def right(self) -> float | None:
        """Share of those that were judged."""
        return _mean([float(row.correct) for row in self.rows if row.correct is not None])

    @property
    def searching(self) -> float:
        return _mean([float(row.searched != "no") for row in self.rows]) or 0.0

    @property
    def reward(self) -> float | None:
        return _mean([row.reward for row in self.rows if row.reward is not None])


def step_of(file: Path) -> int | None:
    """Training step of a file of episodes; None for one of an evaluation."""
    found = STEP.fullmatch(file.stem)
    return int(found[1]) if found else None


def episode_files(folder: Path) -> list[Path]:
    """Evaluations in the order in which they were written, then training steps."""
    files = folder.rglob("*.parquet") if folder.is_dir() else []
    return sorted(files, key=lambda file: (step_of(file) is not None, step_of(file) or file.stat().st_mtime_ns, file.name))


def read_source(path: Path, folder: Path) -> Source:
    """`folder` is the one that `path` lies in, at any depth."""
    step = step_of(path)
    columns = pq.read_schema(path).names
    table = pq.ParquetFile(path).read(columns=[name for name in COLUMNS if name.split(".")[0] in columns])
    stem = re.sub(r"[^A-Za-z0-9_-]", "-", "-".join(path.relative_to(folder).with_suffix("").parts))
    title = f"step {step}" if step is not None else path.stem.replace("_", " ").replace("-", ", ")
    return Source(path, stem, title, step, [_row(row, step) for row in table.to_pylist()])


@dataclass(frozen=True, slots=True)
class _Turn:
    action: str
    tool: str | None
    failure: str | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class _Judged:
    """What `evaluation.classes` looks at."""

    outcome: str
    correct: bool | None
    turns: list[_Turn]


def _row(row: Mapping[str, Any], step: int | None) -> Row:
    judged = _Judged(row["outcome"], row["correct"], [_Turn(**turn) for turn in row["turns"]])
    used = {turn["tool"] for turn in row["turns"] if turn["tool"]}
    return Row(
        uid=row["uid"][:UID_CHARS],
        index=row["index"],
        step=step,
        question=row["question"][:QUESTION_CHARS],
        need=row["need"],
        outcome=row["outcome"],
        answer=None if row["answer"] is None else row["answer"][:ANSWER_CHARS],
        reward=row["reward"],
        correct=row["correct"],
        searched=" ".join(sorted(used)) or "no",
        behaviour=behaviour_class(judged),
        error=error_type(judged),
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
