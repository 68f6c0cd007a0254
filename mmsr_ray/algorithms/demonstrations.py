"""Demonstrations: stored trajectories of any model, filtered by correctness and rebuilt in the student's tokens (spec §4.3).

Promise: a demonstration is a trajectory that `run_episode` itself made from the teacher's turns and the results that the
teacher saw. What does not come out as it was stored (too long for the student's limits, another action) is dropped and
counted. Token ids of the teacher are never used. Pure: neither Ray nor a model.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmsr_ray.agent.episode import InputError, run_episode
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.tokens import Codec
from mmsr_ray.config import AgentConfig
from mmsr_ray.data.reader import find_files
from mmsr_ray.data.schema import DataError
from mmsr_ray.evaluation.trajectories import SCHEMA, StoredTrajectory, StoredTurn, action_name, read_row_group
from mmsr_ray.learner.plan import Item
from mmsr_ray.types import (
    Generation,
    Group,
    ImageHit,
    Need,
    Outcome,
    Picture,
    Sample,
    Sampling,
    TextHit,
    TextSearch,
    ToolFailure,
    ToolKind,
    ToolResult,
    Trajectory,
)

LIGHT = ("split", "uid", "workflow", "outcome", "correct", "well_formed")


@dataclass(frozen=True, slots=True)
class Place:
    """Accepted rows of one row group of a file."""

    file: str
    row_group: int
    rows: tuple[int, ...]


@dataclass
class Choice:
    """Where the accepted trajectories lie, and how many were stored, wrong, malformed, broken or repeated."""

    places: list[Place] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def choose(path: str | Path) -> Choice:
    """Rejection sampling: of each question and workflow the first trajectory that is correct and well-formed.

    `path` is a parquet file of trajectories, a folder of them or a glob, such as that of several tries of a teacher. Raises DataError
    for a path without such files, and when nothing is accepted.
    """
    choice = Choice()
    seen: set[tuple[str, str, str]] = set()
    for file in files_at(path):
        parquet = _open(file)
        for number in range(parquet.num_row_groups):
            rows = parquet.read_row_group(number, columns=list(LIGHT)).to_pylist()
            accepted = []
            for place, row in enumerate(rows):
                question = (row["split"], row["uid"], row["workflow"])
                why = _rejected(row) or ("repeated" if question in seen else "")
                choice.counts[why or "accepted"] += 1
                if not why:
                    seen.add(question)
                    accepted.append(place)
            if accepted:
                choice.places.append(Place(str(file), number, tuple(accepted)))
    if not choice.places:
        raise DataError(f"no trajectory in {path} is correct and well-formed ({dict(choice.counts)}): ask a better teacher")
    return choice


def files_at(path: str | Path) -> list[Path]:
    """Raises DataError where there are none."""
    return [Path(file) for file in find_files(str(path), "sft.demonstrations: trajectories that jobs/evaluate.py wrote")]


def _open(file: Path) -> pq.ParquetFile:
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as parquet ({error}): write it again") from error
    missing = sorted(set(SCHEMA.names[:17]) - set(parquet.schema_arrow.names))
    if missing:
        raise DataError(f"{file} holds no trajectories, it lacks {', '.join(missing)}: name what jobs/evaluate.py wrote")
    return parquet


def _rejected(row: dict[str, object]) -> str:
    """Why a row is no demonstration; "" when it is one."""
    if row["outcome"] == Outcome.INFRA_ERROR or row["correct"] is None:
        return "broken"
    if not row["correct"]:
        return "wrong"
    return "" if row["well_formed"] else "malformed"


def rebuild(places: Iterable[Place], codec: Codec, prompts: PromptSet, limits: AgentConfig) -> Iterator[Group | str]:
    """Each chosen trajectory as a group of one, or why it was dropped, in order."""
    for place in places:
        stored = read_row_group(place.file, place.row_group)
        for row in place.rows:
            yield rebuilt(stored[row], codec, prompts, limits)


def rebuilt(stored: StoredTrajectory, codec: Codec, prompts: PromptSet, limits: AgentConfig) -> Group | str:
    """One stored trajectory played again, or why it comes out otherwise."""
    sample = sample_of(stored)
    recorded = _Recorded(stored, codec)
    try:
        trajectory = asyncio.run(
            run_episode(
                sample,
                index=0,
                workflow=stored.workflow,
                generate=recorded,
                tools=recorded,
                codec=codec,
                prompts=prompts,
                limits=limits,
                sampling=Sampling(max_tokens=limits.max_turn_tokens),
            )
        )
    except InputError as error:
        return f"cannot be asked: {error}"
    if trajectory.outcome is not Outcome.OK:
        return trajectory.detail
    if _course(trajectory) != [(turn.action, turn.query) for turn in stored.turns] or trajectory.answer != stored.answer:
        return "comes out otherwise"
    return Group(stored.uid, 0, sample, (trajectory,))


def sample_of(stored: StoredTrajectory) -> Sample:
    need = None if stored.need is None else Need(stored.need)
    return Sample(stored.uid, stored.question, stored.picture, stored.answers, stored.source, need=need)


def items_of(group: Group) -> list[Item]:
    """Every trajectory of a group as a thing to imitate."""
    return [
        Item(0, number, 1.0, t.tokens.length, int(t.tokens.loss_mask.sum()), len(t.tokens.pictures), t.tokens.patches)
        for number, t in enumerate(group.trajectories)
    ]


def _course(trajectory: Trajectory) -> list[tuple[str, str | None]]:
    """(action, query) of each turn, as stored."""
    return [(action_name(t.action), t.action.query if isinstance(t.action, TextSearch) else None) for t in trajectory.turns]


class _Recorded:
    """The stored turns and results again, in order (the agent's `Generate` and `Tools` protocols)."""

    def __init__(self, stored: StoredTrajectory, codec: Codec) -> None:
        self._codec = codec
        self._texts = iter([turn.text for turn in stored.turns if turn.text])  # a step of the workflow itself has none
        self._results = iter([turn for turn in stored.turns if turn.tool is not None])

    async def __call__(self, prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        ids = self._codec.encode_turn(next(self._texts, ""))
        return Generation(ids, [0.0] * len(ids), [0] * len(ids), stopped=len(ids) <= sampling.max_tokens)

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        return self._next(ToolKind.IMAGE, hashlib.sha256(picture_bytes).hexdigest())

    async def text_search(self, query: str, question: str) -> ToolResult:
        return self._next(ToolKind.TEXT, query)

    def _next(self, kind: ToolKind, query: str) -> ToolResult:
        turn = next(self._results, None)
        if turn is None or turn.tool != kind:
            return ToolResult(kind, query, failure=ToolFailure.TAPE_MISS, detail="the teacher did not search here")
        failure = None if turn.failure is None else ToolFailure(turn.failure)
        return ToolResult(kind, query, _hits(kind, turn), failure)


def _hits(kind: ToolKind, turn: StoredTurn) -> tuple[ImageHit, ...] | tuple[TextHit, ...]:
    if kind is ToolKind.TEXT:
        return tuple(TextHit(hit.url, hit.summary, hit.title) for hit in turn.hits)
    return tuple(
        ImageHit(hit.title, Picture(hit.thumbnail, hashlib.sha256(hit.thumbnail).hexdigest()), hit.url)
        for hit in turn.hits
        if hit.thumbnail is not None
    )
