"""A benchmark: questions, and what has to be known about them.

Promise: no row is dropped in silence. A bad row is counted by kind and told; a published benchmark that is left with another
number of questions than its own is refused before the first question is asked, unless `data.benchmark_sizes=warn`. uids are unique.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mmsr_ray.config import DataConfig
from mmsr_ray.data.reader import IndexRow, rank
from mmsr_ray.data.schema import BadRow, BadRows, DataError, check_image
from mmsr_ray.data.tables import Pictures, Table
from mmsr_ray.evaluation.benchmarks.layouts import Layout
from mmsr_ray.types import Sample

logger = logging.getLogger(__name__)


@dataclass
class Benchmark:
    """`size` is the published number of questions, None for a user's own set. `bad` counts rows that cannot be asked, by kind, and
    grows as pictures are looked at; `left_out` counts rows of parts that are not meant, by why.
    """

    name: str
    size: int | None
    licence: str
    source: str
    rows: list[IndexRow]
    bad: BadRows
    left_out: Counter[str]
    config: DataConfig
    _pictures: Pictures = field(default_factory=Pictures, init=False, repr=False)
    _good: dict[str, bool] = field(default_factory=dict, init=False, repr=False)  # by uid: pictures that were looked at

    def __post_init__(self) -> None:
        """Raises DataError for a wrong number of questions, or none."""
        self._judge_size(len(self.rows))
        what = f"; left out: {', '.join(f'{count} where {why}' for why, count in self.left_out.items())}" if self.left_out else ""
        logger.info("%s: %d questions of %s (licence: %s)%s", self.name, len(self.rows), self.source, self.licence, what)
        self.bad.log(self.source)

    def samples(self, questions: int = 0, seed: int = 0) -> Iterator[Sample]:
        """Samples in the order of the files, one picture in memory at a time; a `questions` > 0 takes that many, always the same ones.

        All pictures that will be asked about are decoded once before this returns. Of all questions a bad picture is missing
        from the size; in a choice it is replaced by the next. Raises DataError.
        """
        chosen = self._choose(questions, seed) if questions else self.with_pictures()
        return (question.fields.sample(self._load(question)) for question in chosen)

    def with_pictures(self) -> list[IndexRow]:
        """All rows whose picture can be decoded; each is looked at once in the life of this object. Raises DataError as `samples` does."""
        before = self.bad.total
        good = [question for question in self.rows if self._has_picture(question)]
        if self.bad.total > before:
            self.bad.log(self.source)
        self._judge_size(len(good))
        return good

    def _choose(self, count: int, seed: int) -> list[IndexRow]:
        chosen: set[str] = set()
        for question in sorted(self.rows, key=lambda q: (rank(q.fields.uid, seed, 0), q.fields.uid)):
            if len(chosen) == count:
                break
            if self._has_picture(question):
                chosen.add(question.fields.uid)
        if not chosen:
            raise self._useless()
        return [question for question in self.rows if question.fields.uid in chosen]

    def _has_picture(self, question: IndexRow) -> bool:
        uid = question.fields.uid
        if uid not in self._good:
            try:
                check_image(self._load(question), self.config)
            except BadRow as bad:
                self.bad.add(bad.kind, uid)
                self._good[uid] = False
            else:
                self._good[uid] = True
        return self._good[uid]

    def _load(self, row: IndexRow) -> bytes:
        return self._pictures.load(row.file, row.row, row.column, row.folders)

    def _judge_size(self, count: int) -> None:
        if not count:
            raise self._useless()
        if self.size is None or count == self.size:
            return
        unusable = f"; unusable: {self.bad}" if self.bad.total else ""
        said = f"{self.name} has {count} usable questions where {self.size} are published{unusable}"
        if self.config.benchmark_sizes == "exact":
            raise DataError(f"{said}: numbers are not comparable; complete {self.source}, or set data.benchmark_sizes=warn")
        logger.warning("%s: numbers are not comparable with published ones", said)

    def _useless(self) -> DataError:
        left_out = ", ".join(f"{why}: {count}" for why, count in self.left_out.items())
        return DataError(f"{self.name} has no usable question ({self.bad or left_out or 'no rows'}): look at {self.source}")


def read_rows(
    tables: Sequence[tuple[Table, Layout]], config: DataConfig, source: str, bad: BadRows, left_out: Counter[str]
) -> list[IndexRow]:
    """Every row whose fields are good and that is meant; the others are counted in `bad` and `left_out`. `source` names a row's set
    where the row does not. A row without id is called after its file and its place.
    """
    rows, seen = [], set()
    stems = _stems([table.file for table, _ in tables])
    for (table, layout), stem in zip(tables, stems, strict=True):
        for number, (cells, has_picture) in enumerate(table.rows(layout.columns(table.columns), layout.picture)):
            uid = f"{stem}_{number}"
            try:
                if cells is None:
                    raise BadRow("malformed row")
                uid = _text(cells.get(layout.uid)) or uid
                if why := layout.meant(cells, has_picture):
                    left_out[why] += 1
                    continue
                if uid in seen:
                    raise BadRow("duplicate id")
                if not has_picture:
                    raise BadRow("no image")
                rows.append(IndexRow(layout.fields(cells, uid, config, source), table.file, number, layout.picture, layout.folders))
                seen.add(uid)
            except BadRow as error:
                bad.add(error.kind, uid)
    return rows


def _stems(files: Sequence[str]) -> list[str]:
    """Names of files without what they share and without their ending."""
    prefix = os.path.commonpath([os.path.dirname(file) for file in files])
    return [os.path.splitext(os.path.relpath(file, prefix))[0] for file in files]


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
