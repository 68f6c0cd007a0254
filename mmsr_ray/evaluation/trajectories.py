"""Trajectories as parquet: what the policy wrote, what it searched, what came back, and all the pictures.

Promise: a file holds everything a reader needs to judge an episode by eye, and nothing else (no token arrays); it appears
whole or not at all, and several writers may share a folder. Reading gives plain `StoredTrajectory` values back; what files
of before did not hold yet has its default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmsr_ray.rewards.score import judge_says, rules_say
from mmsr_ray.types import (
    Action,
    Answer,
    Group,
    ImageHit,
    ImageSearch,
    Malformed,
    Sample,
    TextHit,
    TextSearch,
    ToolResult,
    Trajectory,
    Turn,
)

ROW_GROUP = 16  # rows: a row carries half a dozen pictures
TrajectoryRow = dict[str, Any]  # by the columns of SCHEMA

HIT = pa.struct([("title", pa.string()), ("url", pa.string()), ("summary", pa.string()), ("thumbnail", pa.binary())])
TURN = pa.struct(
    [
        ("text", pa.string()),
        ("action", pa.string()),  # image_search | text_search | answer | malformed
        ("query", pa.string()),  # of a text search
        ("tool", pa.string()),  # kind of the executed call, null where none was made
        ("failure", pa.string()),
        ("detail", pa.string()),  # why the tool failed or the turn is malformed
        ("cached", pa.bool_()),
        ("tool_seconds", pa.float64()),
        ("tokens", pa.int32()),
        ("hits", pa.list_(HIT)),
        ("partial", pa.bool_()),
        ("attempts", pa.int32()),
        ("cost_usd", pa.float64()),
        ("seconds", pa.float64()),  # in the engine
        ("version_min", pa.int32()),  # of the weights that sampled the turn; -1: unknown
        ("version_max", pa.int32()),
    ]
)
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("index", pa.int32()),  # which rollout of its group
        ("split", pa.string()),
        ("step", pa.int32()),  # training step, null in an evaluation
        ("workflow", pa.string()),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("need", pa.string()),
        ("source", pa.string()),
        ("picture", pa.binary()),  # the user's, as encoded in the data set
        ("outcome", pa.string()),
        ("detail", pa.string()),
        ("answer", pa.string()),
        ("reward", pa.float64()),  # null where none was given (infra errors)
        ("correct", pa.bool_()),
        ("well_formed", pa.bool_()),
        ("turns", pa.list_(TURN)),
        ("searches_counted", pa.int32()),  # as the reward's penalty counts them, null without reward
        ("verdict", pa.string()),  # of the judge, or why there is none; null where none was asked
        ("length", pa.int32()),  # tokens of the whole transcript, pictures expanded
        ("sampled_tokens", pa.int32()),
        ("version_min", pa.int32()),  # -1: nothing was sampled
        ("version_max", pa.int32()),
        ("generate_seconds", pa.float64()),
        ("tool_seconds", pa.float64()),
        ("cost_usd", pa.float64()),  # searches and verdict
        ("em", pa.bool_()),  # exact match and SubEM of the answer, whoever decides `correct`
        ("subem", pa.bool_()),
        ("judged", pa.bool_()),  # the judge's yes or no; null where it gave none
    ]
)


@dataclass(frozen=True, slots=True)
class StoredHit:
    title: str
    url: str
    summary: str  # text hits only
    thumbnail: bytes | None  # image hits only, PNG


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """Fields as in the column `turns` of `SCHEMA`."""

    text: str
    action: str
    query: str | None
    tool: str | None
    failure: str | None
    detail: str | None
    cached: bool
    tool_seconds: float
    tokens: int
    hits: tuple[StoredHit, ...]
    partial: bool = False
    attempts: int = 1
    cost_usd: float = 0.0
    seconds: float = 0.0
    version_min: int = -1
    version_max: int = -1


@dataclass(frozen=True, slots=True)
class StoredTrajectory:
    """Fields as in `SCHEMA`."""

    uid: str
    index: int
    split: str
    step: int | None
    workflow: str
    question: str
    answers: tuple[str, ...]
    need: str | None
    source: str
    picture: bytes
    outcome: str
    detail: str
    answer: str | None
    reward: float | None
    correct: bool | None
    well_formed: bool | None
    turns: tuple[StoredTurn, ...]
    searches_counted: int | None = None
    verdict: str | None = None
    length: int = 0
    sampled_tokens: int = 0
    version_min: int = -1
    version_max: int = -1
    generate_seconds: float = 0.0
    tool_seconds: float = 0.0
    cost_usd: float = 0.0
    em: bool | None = None  # None in files of before
    subem: bool | None = None
    judged: bool | None = None


def write_trajectories(path: str | Path, pairs: Iterable[tuple[Sample, Trajectory]], *, split: str, step: int | None = None) -> int:
    """Write one parquet file of (sample, trajectory) pairs; returns the number of rows. `step` is None in an evaluation."""
    return write_rows(path, (trajectory_row(sample, trajectory, split=split, step=step) for sample, trajectory in pairs))


def write_rows(path: str | Path, rows: Iterable[TrajectoryRow]) -> int:
    """As `write_trajectories`, of rows made by `trajectory_row`. Streams."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    written = 0
    with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        chunk: list[TrajectoryRow] = []
        for row in rows:
            chunk.append(row)
            written += 1
            if len(chunk) == ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(chunk, schema=SCHEMA))
                chunk = []
        if chunk:
            writer.write_table(pa.Table.from_pylist(chunk, schema=SCHEMA))
    partial.replace(path)
    return written


def write_groups(folder: str | Path, groups: Iterable[Group], *, step: int) -> Path:
    """Write the trajectories of training groups as `folder`/step_<step>.parquet."""
    path = Path(folder) / f"step_{step:06d}.parquet"
    write_trajectories(
        path, ((group.sample, trajectory) for group in groups for trajectory in group.trajectories), split="train", step=step
    )
    return path


def read_trajectories(path: str | Path, limit: int = 0) -> Iterator[StoredTrajectory]:
    """Rows of a file, or of every *.parquet of a folder by name; at most `limit` where it is > 0. Streams."""
    path = Path(path)
    count = 0
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=ROW_GROUP):
            for row in batch.to_pylist():
                yield _stored(row)
                count += 1
                if count == limit:
                    return


def read_row_group(file: str | Path, number: int) -> list[StoredTrajectory]:
    """The rows of one row group of a file."""
    return [_stored(row) for row in pq.ParquetFile(file).read_row_group(number).to_pylist()]


def action_name(action: Action) -> str:
    """As in the column `turns.action`."""
    return _action(action)[0]


def pack(row: TrajectoryRow) -> bytes:
    """One row in few bytes, for whoever keeps single ones; `unpack` takes it and the schema that was `SCHEMA` then."""
    return pa.RecordBatch.from_pylist([row], schema=SCHEMA).serialize().to_pybytes()


def unpack(packed: bytes, schema: pa.Schema) -> TrajectoryRow:
    return pa.ipc.read_record_batch(pa.py_buffer(packed), schema).to_pylist()[0]


def trajectory_row(sample: Sample, trajectory: Trajectory, *, split: str, step: int | None = None) -> TrajectoryRow:
    """The row of a file that `SCHEMA` describes."""
    reward, verdict = trajectory.reward, trajectory.verdict
    versions = trajectory.tokens.versions[trajectory.tokens.loss_mask]
    oldest, newest = _span(versions)
    em, subem = rules_say(trajectory, sample)
    return {
        "uid": trajectory.uid,
        "index": trajectory.index,
        "split": split,
        "step": step,
        "workflow": trajectory.workflow,
        "question": trajectory.question,
        "answers": list(sample.answers),
        "need": None if sample.need is None else sample.need.value,
        "source": sample.source,
        "picture": sample.image,
        "outcome": trajectory.outcome.value,
        "detail": trajectory.detail,
        "answer": trajectory.answer,
        "reward": None if reward is None else reward.total,
        "correct": None if reward is None else reward.correct,
        "well_formed": None if reward is None else reward.well_formed,
        "turns": [_turn(turn, _span(part)) for turn, part in zip(trajectory.turns, _by_turn(trajectory, versions), strict=True)],
        "searches_counted": None if reward is None else reward.searches_counted,
        "verdict": None if verdict is None else verdict.hits[0].title if verdict.hits else f"{verdict.failure}: {verdict.detail}",
        "length": trajectory.tokens.length,
        "sampled_tokens": len(versions) or sum(turn.tokens for turn in trajectory.turns),  # as a chat service counted them
        "version_min": oldest,
        "version_max": newest,
        "generate_seconds": trajectory.generate_seconds,
        "tool_seconds": trajectory.tool_seconds,
        "cost_usd": sum(result.cost_usd for result in trajectory.paid_calls),
        "em": em,
        "subem": subem,
        "judged": judge_says(trajectory),
    }


def _by_turn(trajectory: Trajectory, versions: np.ndarray) -> list[np.ndarray]:
    """The weight versions (int32 [sampled tokens]) turn by turn; empty ones where a cut at the length limit took tokens away."""
    tokens = [turn.tokens for turn in trajectory.turns]
    if sum(tokens) != len(versions):
        return [versions[:0]] * len(tokens)
    return np.split(versions, np.cumsum(tokens)[:-1]) if tokens else []


def _span(versions: np.ndarray) -> tuple[int, int]:
    return (int(versions.min()), int(versions.max())) if versions.size else (-1, -1)


def _turn(turn: Turn, versions: tuple[int, int]) -> dict[str, Any]:
    action, query, why = _action(turn.action)
    tool = turn.tool
    return {
        "text": turn.text,
        "action": action,
        "query": query,
        "tool": None if tool is None else tool.kind.value,
        "failure": None if tool is None or tool.failure is None else tool.failure.value,
        "detail": why if tool is None else tool.detail,
        "cached": tool is not None and tool.cached,
        "tool_seconds": 0.0 if tool is None else tool.seconds,
        "tokens": turn.tokens,
        "hits": [] if tool is None else _hits(tool),
        "partial": tool is not None and tool.partial,
        "attempts": 1 if tool is None else tool.attempts,
        "cost_usd": 0.0 if tool is None else tool.cost_usd,
        "seconds": turn.seconds,
        "version_min": versions[0],
        "version_max": versions[1],
    }


def _action(action: Action) -> tuple[str, str | None, str | None]:
    """(name, query, why malformed)."""
    match action:
        case ImageSearch():
            return "image_search", None, None
        case TextSearch(query):
            return "text_search", query, None
        case Answer():
            return "answer", None, None
        case Malformed(why):
            return "malformed", None, why


def _hits(tool: ToolResult) -> list[dict[str, Any]]:
    rows = []
    for hit in tool.hits:
        match hit:
            case ImageHit():
                rows.append({"title": hit.title, "url": hit.url, "summary": "", "thumbnail": hit.thumbnail.data})
            case TextHit():
                rows.append({"title": hit.title, "url": hit.url, "summary": hit.summary, "thumbnail": None})
    return rows


def _stored(row: dict[str, Any]) -> StoredTrajectory:
    turns = tuple(StoredTurn(**{**turn, "hits": tuple(StoredHit(**hit) for hit in turn["hits"])}) for turn in row["turns"])
    return StoredTrajectory(**{**row, "answers": tuple(row["answers"]), "turns": turns})
