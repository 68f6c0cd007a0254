"""A candidate: one question about one picture on its way from a concept into the data set, and the files between the stages.

Promise: no candidate gets lost. A stage drops one by writing why into `status`; the row stays in every later file, so that counts
add up. A stage file appears whole or not at all, and names what it was made from; reading holds a few rows in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmsr_ray.data.schema import DataError

KEPT = "kept"
ROW_GROUP = 64  # rows; as of the FVQA files
_MADE_FROM = b"made_from"


class Origin(StrEnum):
    """Where a question comes from (spec §5.2)."""

    VISUAL = "visual"  # FVQA-auto-vc: a concept, its picture and page, a question written by a model
    TEXTUAL = "textual"  # FVQA-auto-txt: questions of another set, as InfoSeek
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Fields that no stage has filled yet are empty. Immutable: stages return changed copies."""

    key: str  # hex; of what the candidate began as, so that it stays the same through all stages and all runs
    origin: str = Origin.VISUAL.value
    concept: str = ""
    rank: str = ""  # head | tail: how frequent the concept is; "" where nobody counted
    image: bytes = b""  # encoded picture
    image_url: str = ""
    page_url: str = ""
    page_title: str = ""
    page_text: str = ""
    licence: str = ""  # of the picture, as the service tells it; "" where it does not
    source: str = ""  # who shows the picture, as the service tells it
    question: str = ""
    answer: str = ""
    aliases: tuple[str, ...] = ()  # other right forms of the answer
    category: str = ""  # of the taxonomy (spec §5.4)
    need: str = ""  # value of types.Need, by search balancing
    attempts: str = ""  # JSON list, one object a rollout: {"correct", "image_searches", "text_searches", ...}
    status: str = KEPT  # or why it was dropped: a short phrase from a fixed list of its stage
    detail: str = ""  # what exactly was wrong with a dropped one, for people
    review: str = ""  # accepted | edited | rejected | disputed; "" before review
    reviewers: tuple[str, ...] = ()
    review_note: str = ""

    @property
    def kept(self) -> bool:
        return self.status == KEPT

    @property
    def answers(self) -> tuple[str, ...]:
        """The gold answer first, then its other forms, none twice."""
        return tuple(dict.fromkeys([self.answer, *self.aliases]))

    def dropped(self, reason: str, detail: str = "") -> Candidate:
        return replace(self, status=reason, detail=detail)


SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "origin", "concept", "rank")),
        ("image", pa.large_binary()),
        *((name, pa.string()) for name in ("image_url", "page_url", "page_title")),
        ("page_text", pa.large_string()),
        *((name, pa.string()) for name in ("licence", "source", "question", "answer")),
        ("aliases", pa.list_(pa.string())),
        *((name, pa.string()) for name in ("category", "need", "attempts", "status", "detail", "review")),
        ("reviewers", pa.list_(pa.string())),
        ("review_note", pa.string()),
    ]
)


def key_of(*parts: str | bytes) -> str:
    """A content hash: 32 hex digits that depend on the parts and their order alone."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "replace")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]


# ---------------------------------------------------------------------------------------------------- tables


def to_table(candidates: Iterable[Candidate]) -> pa.Table:
    rows = [asdict(candidate) for candidate in candidates]
    return pa.Table.from_pylist(
        [row | {"aliases": list(row["aliases"]), "reviewers": list(row["reviewers"])} for row in rows], schema=SCHEMA
    )


def from_table(table: pa.Table) -> list[Candidate]:
    return [_candidate(row) for row in table.to_pylist()]


def _candidate(row: Mapping[str, Any]) -> Candidate:
    return Candidate(**{**row, "aliases": tuple(row["aliases"] or ()), "reviewers": tuple(row["reviewers"] or ())})


# ---------------------------------------------------------------------------------------------------- stage files


def write(path: str | Path, candidates: Iterable[Candidate], made_from: Mapping[str, str] | None = None) -> Counter[str]:
    """Write a stage file; returns the number of candidates by `status`. Memory holds one row group.

    `made_from` (what the content depends on, name -> hash or value) is kept in the file: `read_made_from`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    counts: Counter[str] = Counter()
    schema = SCHEMA.with_metadata({_MADE_FROM: json.dumps(dict(made_from or {}), sort_keys=True).encode()})
    packed: Any = {name: "none" if name == "image" else "zstd" for name in SCHEMA.names}  # pictures are compressed already
    with pq.ParquetWriter(partial, schema, compression=packed) as writer:
        for chunk in _chunks(candidates):
            counts.update(candidate.status for candidate in chunk)
            writer.write_table(to_table(chunk).cast(schema))
    partial.replace(path)
    return counts


def read(path: str | Path, *, kept: bool = False) -> Iterator[Candidate]:
    """The candidates of a stage file in its order, `kept` alone or all. Raises DataError when it is no such file."""
    with _open(path) as file:
        for group in range(file.num_row_groups):  # iter_batches would hold on to all that it has read
            yield from (c for c in from_table(file.read_row_group(group)) if c.kept or not kept)


def read_made_from(path: str | Path) -> dict[str, str]:
    """What a stage file says it was made from. Raises DataError when it is no such file."""
    with _open(path) as file:
        return json.loads((file.schema_arrow.metadata or {}).get(_MADE_FROM, b"{}"))


def _open(path: str | Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read the stage file {path} ({error}): remove it and run the stage before again") from error
    if file.schema_arrow.names != SCHEMA.names:
        file.close()
        raise DataError(f"{path} is no stage file of this version (its columns differ): remove it and run the job again")
    return file


def _chunks(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    chunk: list[Candidate] = []
    for candidate in candidates:
        chunk.append(candidate)
        if len(chunk) == ROW_GROUP:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
