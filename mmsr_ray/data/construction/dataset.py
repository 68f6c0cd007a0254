"""A built set as files: FVQA parquet, where each picture comes from, figures and a card.

Promise: train.parquet and test.parquet have the released FVQA schema (spec §5.1) and `need`, so that whatever trains on FVQA
trains on them; provenance.parquet says for each row, by `data_id`, who is to be credited. Each file appears whole or not at all, the
card last. Candidates are streamed: memory holds one row group.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmsr_ray.data.construction.attempts import from_json
from mmsr_ray.data.construction.balance import label
from mmsr_ray.data.construction.balance_settings import BalanceConfig
from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.data.construction.card import About, write_card
from mmsr_ray.data.construction.charts import draw
from mmsr_ray.data.construction.statistics import Statistics, category_of
from mmsr_ray.data.schema import ROW_GROUP, write_fvqa
from mmsr_ray.types import Need, Sample

logger = logging.getLogger(__name__)

PROVENANCE = "provenance.parquet"
_COLUMNS = (
    *("data_id", "split", "origin", "concept", "rank", "taxonomy", "image_url", "page_url", "page_title", "licence", "source"),
    *("review", "reviewers"),
)
_SCHEMA = pa.schema([*((name, pa.string()) for name in _COLUMNS), ("confidence", pa.float64())])


def write_dataset(folder: str | Path, splits: Mapping[str, Iterable[Candidate]], about: About) -> dict[str, Statistics]:
    """Write the kept candidates of each split ("train", "test"): <split>.parquet, provenance.parquet, figures/*.png, README.md.

    A split without candidates has no file. Returns the statistics by split.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{PROVENANCE}.partial"
    found: dict[str, Statistics] = {}
    with pq.ParquetWriter(partial, _SCHEMA) as provenance:
        for split, candidates in splits.items():
            statistics = Statistics()
            file = folder / f"{split}.parquet"
            write_fvqa(file, _samples(candidates, split, about, statistics, provenance))
            if statistics.questions:
                found[split] = statistics
            else:
                logger.warning("the %s split has no questions: no file of it is written", split)
                file.unlink()
    partial.replace(folder / PROVENANCE)
    figures = draw(folder / "figures", found)
    write_card(folder / "README.md", found, figures, about)
    return found


def _samples(
    candidates: Iterable[Candidate], split: str, about: About, statistics: Statistics, provenance: pq.ParquetWriter
) -> Iterator[Sample]:
    rows: list[dict[str, Any]] = []
    for candidate in candidates:
        if not candidate.kept:
            continue
        statistics.add(candidate)
        rows.append(_provenance(candidate, split, about.construction.balance))
        if len(rows) == ROW_GROUP:
            provenance.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
            rows = []
        yield to_sample(candidate, f"mmsearch_r1/{about.name}_{split}")
    if rows:
        provenance.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))


def to_sample(candidate: Candidate, source: str = "") -> Sample:
    """The row of a candidate; its uid is the candidate's key."""
    return Sample(
        uid=candidate.key,
        question=candidate.question,
        image=candidate.image,
        answers=candidate.answers,
        source=source or candidate.source,
        image_url=candidate.image_url or None,
        need=Need(candidate.need) if candidate.need else None,
        category=category_of(candidate),
    )


def _provenance(candidate: Candidate, split: str, config: BalanceConfig) -> dict[str, Any]:
    same = {name: getattr(candidate, name) for name in _COLUMNS if name not in ("data_id", "split", "taxonomy", "reviewers")}
    return same | {
        "data_id": candidate.key,
        "split": split,
        "taxonomy": candidate.category,
        "reviewers": ", ".join(candidate.reviewers),
        "confidence": label(from_json(candidate.attempts), config).confidence if candidate.attempts else None,
    }
