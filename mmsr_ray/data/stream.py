"""Prompts on Ray Data, pictures loaded late: the endless stream of training, ordered by a hash and resumable from one place, and
any list of questions once (`stream_samples`).

Promise of the endless one: the order within an epoch is that of `rank(uid, seed, epoch)`; it depends on nothing else, not on the number of
files, blocks or CPUs. A place in it is (epoch, rank), and a stream opened at a place yields exactly what a stream that
never stopped yields from there on. Rows whose picture is bad are counted and passed over. An epoch's order costs a hash and
16 bytes a row; the executor sees `PASS_ROWS` prompts at a time, so that neither memory nor the wait for the first prompt
grows with the set beyond that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from mmsr_ray.config import DataConfig
from mmsr_ray.data.cursor import Place
from mmsr_ray.data.reader import Index, IndexRow, every_row_bad, rank
from mmsr_ray.data.schema import BadRow, BadRows, check_image
from mmsr_ray.data.tables import Pictures
from mmsr_ray.types import Sample

BLOCK_ROWS = 16  # pictures that one task loads: the granularity of back-pressure
PASS_ROWS = 2048  # prompts of one pass of the executor, over the ends of epochs: its start costs a second or two
LOADER_CPUS = 0.0  # of Ray's count: a fraction would wait for ever where a trial's placement group holds every CPU
STORE_BYTES = 256 << 20  # of the object store, for pictures that wait between the loaders and the consumer


class PromptStream:
    """Iterate for (place, sample), without end. Needs a running Ray, but no free CPU of Ray's count."""

    def __init__(self, index: Index, config: DataConfig, *, seed: int, start: Place | None = None) -> None:
        self.bad = BadRows()  # found while loading pictures, each row once
        self._index = index
        self._config = config
        self._seed = seed
        self._next = start or Place()
        self._bad_uids: set[str] = set()
        self._reported = 0
        self._barren = 0  # prompts in a row without a good picture
        self._epoch: _Order | None = None

    def __iter__(self) -> Iterator[tuple[Place, Sample]]:
        while True:
            yield from self._pass()

    def _pass(self) -> Iterator[tuple[Place, Sample]]:
        """One run of the executor over the next prompts, also beyond the end of the epoch. Raises DataError."""
        order = self._following(PASS_ROWS)
        for place, row, image, problem in self._load(order):
            if problem:
                self._count_bad(problem, row.fields.uid)
                self._barren += 1
                continue
            self._barren = 0
            yield place, row.fields.sample(image)
        if self.bad.total != self._reported:
            self.bad.log(self._index.path)
            self._reported = self.bad.total
        if self._barren >= len(self._index.rows):
            raise every_row_bad(self._index.path, self.bad)

    def _following(self, count: int) -> list[tuple[Place, int]]:
        """(place, number in the index) of the next `count` prompts, which are then behind."""
        found: list[tuple[Place, int]] = []
        while len(found) < count:
            if self._epoch is None or self._epoch.number != self._next.epoch:
                self._epoch = _Order(self._next.epoch, self._index, self._seed)
            part = self._epoch.after(self._next, count - len(found))
            found += part
            self._next = part[-1][0].after() if part else Place(self._next.epoch + 1)
        return found

    def _load(self, order: list[tuple[Place, int]]) -> Iterator[tuple[Place, IndexRow, bytes, str]]:
        rows = [self._index.rows[number] for _, number in order]
        for (place, _), row, (image, problem) in zip(order, rows, load_pictures(rows, self._config), strict=True):
            yield place, row, image, problem

    def _count_bad(self, kind: str, uid: str) -> None:
        if uid not in self._bad_uids:
            self._bad_uids.add(uid)
            self.bad.add(kind, uid)


def stream_samples(rows: Sequence[IndexRow], config: DataConfig, bad: BadRows) -> Iterator[Sample]:
    """Each row once, in order; those whose picture is bad are passed over and counted in `bad`. Needs a running Ray."""
    for start in range(0, len(rows), PASS_ROWS):
        part = rows[start : start + PASS_ROWS]
        for row, (image, problem) in zip(part, load_pictures(part, config), strict=True):
            if problem:
                bad.add(problem, row.fields.uid)
            else:
                yield row.fields.sample(image)


def load_pictures(rows: Sequence[IndexRow], config: DataConfig) -> Iterator[tuple[bytes, str]]:
    """(picture, "") or (b"", what is wrong with it) of each row, in order, by one run of Ray Data's executor."""
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=STORE_BYTES)
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # it reports every start of an executor
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that there are no progress bars
    with DataContext.current(context):
        blocks = [_block(rows[i : i + BLOCK_ROWS]) for i in range(0, len(rows), BLOCK_ROWS)]
        # from_blocks and not from_arrow, which starts tasks of a whole CPU each to look at the tables
        pictures = ray.data.from_blocks(blocks).map_batches(
            LoadImages,
            fn_constructor_args=(config,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=config.image_workers),
            num_cpus=LOADER_CPUS,
        )
    for batch in pictures.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        batch = cast(pa.Table, batch)
        for image, problem in zip(batch.column("image"), batch.column("problem"), strict=True):
            yield image.as_py() or b"", problem.as_py()


def _block(rows: Sequence[IndexRow]) -> pa.Table:
    where = {name: [getattr(row, name) for row in rows] for name in ("file", "row", "column")}
    return pa.table({**where, "folders": pa.array([list(row.folders) for row in rows], pa.list_(pa.string()))})


class _Order:
    """The order of one epoch: 16 bytes a row."""

    def __init__(self, epoch: int, index: Index, seed: int) -> None:
        self.number = epoch
        ranks = np.fromiter((rank(row.fields.uid, seed, epoch) for row in index.rows), np.int64, len(index.rows))
        self._rows = np.argsort(ranks, kind="stable")  # equal ranks, should they ever meet, in the order of the index
        self._ranks = ranks[self._rows]

    def after(self, place: Place, count: int) -> list[tuple[Place, int]]:
        """The first `count` prompts at `place` or after it in this epoch; fewer at its end."""
        start = int(np.searchsorted(self._ranks, place.rank)) if place.rank < 1 << 63 else len(self._ranks)
        part = slice(start, start + count)
        return [(Place(self.number, int(r)), int(n)) for r, n in zip(self._ranks[part], self._rows[part], strict=True)]


class LoadImages:
    """Ray Data batch function: {file, row, column, folders} -> {image, problem}; `problem` is "" exactly when `image` is usable."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._pictures = Pictures()

    def __call__(self, batch: pa.Table) -> pa.Table:
        images: list[bytes | None] = []
        problems: list[str] = []
        for where in batch.to_pylist():
            image, problem = self._one(where)
            images.append(image)
            problems.append(problem)
        return pa.table({"image": pa.array(images, pa.large_binary()), "problem": pa.array(problems, pa.string())})

    def _one(self, where: dict[str, Any]) -> tuple[bytes | None, str]:
        try:
            image = self._pictures.load(**where)
            check_image(image, self._config)
        except BadRow as bad:
            return None, bad.kind
        return image, ""
