"""The FVQA parquet schema (spec §5.1) and the one place where a raw row becomes fields of a `Sample`.

Promise: `parse_row` either returns complete, usable fields or raises `BadRow` with a kind from a short fixed list, so
that bad rows can be counted. The pixels are checked apart (`check_image`), because they are loaded late.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmsr_ray.config import DataConfig
from mmsr_ray.types import Need, Sample

logger = logging.getLogger(__name__)

REQUIRED = ("prompt", "images", "reward_model")
OPTIONAL = ("data_source", "image_urls", "data_id", "category", "need")  # released sets lack some of them
ROW_GROUP = 64  # rows; small row groups keep readers of single pictures cheap

FVQA = pa.schema(
    [
        ("prompt", pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("reward_model", pa.struct([("candidate_answers", pa.string()), ("ground_truth", pa.string()), ("style", pa.string())])),
        ("data_source", pa.string()),
        ("image_urls", pa.list_(pa.string())),
        ("data_id", pa.string()),
        ("category", pa.string()),
        ("need", pa.string()),
    ]
)


class DataError(Exception):
    """A data set that cannot be used at all; the message names the file and the remedy."""


class BadRow(ValueError):
    """One row that cannot be used. `kind` is short and repeats, so that rows of a kind can be counted."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass
class BadRows:
    """Counts of skipped rows by kind, with the first few uids of each."""

    shown: int = 3
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, uid: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        uids = self.first.setdefault(kind, [])
        if len(uids) < self.shown:
            uids.append(uid)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        kinds = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return "; ".join(f"{kind}: {count} ({', '.join(self.first[kind])}{', ...' if count > self.shown else ''})" for kind, count in kinds)

    def log(self, source: str) -> None:
        """One warning for the whole set; nothing when every row is good."""
        if self.total:
            logger.warning("skipped %d bad rows of %s: %s", self.total, source, self)


@dataclass(frozen=True, slots=True)
class Fields:
    """A `Sample` without its pixels."""

    uid: str
    question: str
    answers: tuple[str, ...]
    source: str = ""
    image_url: str | None = None
    need: Need | None = None
    category: str | None = None

    def sample(self, image: bytes) -> Sample:
        return Sample(self.uid, self.question, image, self.answers, self.source, self.image_url, self.need, self.category)


def parse_row(row: Mapping[str, Any], uid: str, config: DataConfig) -> Fields:
    """Fields of one raw row, `images` not looked at. Sequences may be lists or ndarrays. Raises BadRow."""
    question = _question(row.get("prompt"))
    if len(question) > config.max_question_chars:
        raise BadRow("question too long")
    return Fields(
        uid=uid,
        question=question,
        answers=_answers(row.get("reward_model")),
        source=_text(row.get("data_source")),
        image_url=_first_url(row.get("image_urls")),
        need=_need(row.get("need")),
        category=_text(row.get("category")) or None,
    )


def check_image(image: bytes | None, config: DataConfig) -> None:
    """Decode the picture to its last pixel, within the limits of size. Raises BadRow."""
    if not image:
        raise BadRow("no image")
    if len(image) > config.max_image_bytes:
        raise BadRow("image has too many bytes")
    try:
        with Image.open(io.BytesIO(image)) as picture:  # reads the header only
            width, height = picture.size
            if width * height > config.max_image_pixels:
                raise BadRow("image has too many pixels")
            picture.load()
    except BadRow:
        raise
    except Exception as error:  # a foreign decoder on foreign bytes: on garbage Pillow raises almost anything
        raise BadRow("corrupt image") from error


def write_fvqa(path: str | Path, samples: Iterable[Sample]) -> int:
    """Write samples as one parquet file in the FVQA schema, plus the optional column `need`; returns the number of rows.

    Streams: memory holds one row group of `ROW_GROUP` samples. The file appears whole or not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    written = 0
    with pq.ParquetWriter(partial, FVQA, compression="none") as writer:  # pictures are compressed already
        chunk: list[dict[str, Any]] = []
        for sample in samples:
            chunk.append(_row(sample))
            written += 1
            if len(chunk) == ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(chunk, schema=FVQA))
                chunk = []
        if chunk:
            writer.write_table(pa.Table.from_pylist(chunk, schema=FVQA))
    partial.replace(path)
    return written


def _row(sample: Sample) -> dict[str, Any]:
    return {
        "prompt": [{"content": sample.question, "role": "user"}],
        "images": [{"bytes": sample.image, "path": None}],
        "reward_model": {
            "candidate_answers": json.dumps(list(sample.answers[1:]), ensure_ascii=False),
            "ground_truth": sample.answers[0],
            "style": "rule",
        },
        "data_source": sample.source,
        "image_urls": [sample.image_url] if sample.image_url else None,
        "data_id": sample.uid,
        "category": sample.category,
        "need": None if sample.need is None else sample.need.value,
    }


def _items(value: Any) -> Sequence[Any]:
    """List, tuple, ndarray or null as a sequence; anything else is one item."""
    if value is None:
        return ()
    if isinstance(value, (list, tuple, np.ndarray)):
        return list(value)
    return (value,)


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()  # NaN is pandas' null


def _question(prompt: Any) -> str:
    """Content of the last user message; a bare string is taken as it is."""
    for message in reversed(_items(prompt)):
        if isinstance(message, str):
            text = message.strip()
        elif isinstance(message, Mapping) and message.get("role") in (None, "user"):
            text = _text(message.get("content"))
        else:
            continue
        if text:
            return text
    raise BadRow("empty question")


def _answers(reward_model: Any) -> tuple[str, ...]:
    """Gold answer first, then the other accepted forms, none twice."""
    if not isinstance(reward_model, Mapping):
        raise BadRow("empty answer")
    gold = _text(reward_model.get("ground_truth"))
    if not gold:
        raise BadRow("empty answer")
    candidates = reward_model.get("candidate_answers")
    if isinstance(candidates, str):
        try:
            candidates = json.loads(candidates) if candidates.strip() else []
        except json.JSONDecodeError as error:
            raise BadRow("candidate answers are not JSON") from error
    others = [_text(item) for item in _items(candidates)]
    return tuple(dict.fromkeys([gold, *filter(None, others)]))


def _first_url(urls: Any) -> str | None:
    for url in _items(urls):
        if isinstance(url, str) and url.strip():
            return url.strip()
    return None


def _need(value: Any) -> Need | None:
    text = _text(value)
    if not text:
        return None
    try:
        return Need(text)
    except ValueError as error:
        raise BadRow("unknown need") from error
