"""Stages on Ray Data: candidates stream from one file through a pool of actors to the next file.

Promise: order is kept, and memory holds a few row groups, however long the file. An actor has the candidates of one row group under
way at once. Nothing of Ray's CPU count is asked for: the actors wait for services. A candidate whose service failed is dropped as FAILED,
and a stage that loses more than `failure_rate` of its candidates so is broken off: nothing is written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from mmsr_ray.data.construction.candidate import Candidate, from_table, to_table
from mmsr_ray.data.construction.fingerprints import fingerprint
from mmsr_ray.data.construction.services import ServiceFailed, Services
from mmsr_ray.data.construction.settings import ConstructionConfig
from mmsr_ray.tools.actor import RemoteTools
from mmsr_ray.tools.errors import BudgetSpent, ToolsError

FAILED, FINAL = "service failed", "service failed for good"
FIRST_LOOK = 50  # failures before a stage may be broken off early
STORE_BYTES = 256 << 20  # of the object store, for row groups on their way

Step = Callable[[Candidate, Services, ConstructionConfig], Awaitable[list[Candidate]]]


def flow(source: Path, step: Step, tools: RemoteTools, config: ConstructionConfig) -> Iterator[Candidate]:
    """Every candidate of a stage file after `step`, a function of a module; dropped ones pass by.

    Raises ToolsError when too many services fail, BudgetSpent when the money does not pay for the rest.
    """
    for_candidates = _mapped(source, _Steps, (str(source), step, tools, config), config.workers)
    return watched((c for table in for_candidates for c in from_table(table)), config.failure_rate)


def fingerprints(source: Path, workers: int) -> dict[str, int]:
    """Key -> fingerprint of the kept candidates whose picture can be read."""
    marks: dict[str, int] = {}
    for table in _mapped(source, _Fingerprints, (str(source),), workers):
        marks |= {row["key"]: int(row["mark"], 16) for row in table.to_pylist()}
    return marks


def watched(candidates: Iterator[Candidate], failure_rate: float) -> Iterator[Candidate]:
    """The same candidates, until services have failed too many of them."""
    seen = failed = 0
    why = ""
    for candidate in candidates:
        if candidate.status == FINAL:
            raise BudgetSpent(f"the building of the set stopped: {candidate.detail}")
        seen += 1
        if candidate.status == FAILED:
            failed, why = failed + 1, candidate.detail
            if failed >= FIRST_LOOK and failed > failure_rate * seen:
                break
        yield candidate
    if failed > failure_rate * seen:
        raise ToolsError(
            f"services failed for {failed} of {seen} candidates, more than construction.failure_rate={failure_rate:g} (the last: {why}): "
            "see that they are well and submit again; what they have answered is kept"
        )


def _mapped(source: Path, worker: type, arguments: tuple[Any, ...], workers: int) -> Iterator[pa.Table]:
    """The tables that workers make of the row groups of a file, in order."""
    with pq.ParquetFile(source) as file:
        groups = file.num_row_groups
    if not groups:
        return
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=STORE_BYTES)
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    with DataContext.current(context):
        # from_blocks and not read_parquet, whose tasks ask for a whole CPU each; the rows are read where they are worked on
        mapped = ray.data.from_blocks([pa.table({"group": [group]}) for group in range(groups)]).map_batches(
            worker,
            fn_constructor_args=arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(workers, groups)),
            num_cpus=0,
        )
        yield from cast(Iterator[pa.Table], mapped.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))


class _Steps:
    """Ray Data batch function: numbers of row groups -> the candidates that a step makes of them."""

    def __init__(self, file: str, step: Step, tools: RemoteTools, config: ConstructionConfig) -> None:
        self._file, self._step, self._config = file, step, config
        self._services = Services(tools, config.structured_output)

    def __call__(self, batch: pa.Table) -> pa.Table:
        candidates = _row_groups(self._file, batch)
        return to_table(asyncio.run(self._all(candidates)))

    async def _all(self, candidates: list[Candidate]) -> list[Candidate]:
        made = await asyncio.gather(*(self._one(candidate) for candidate in candidates))
        return [candidate for group in made for candidate in group]

    async def _one(self, candidate: Candidate) -> list[Candidate]:
        if not candidate.kept:
            return [candidate]
        try:
            return await self._step(candidate, self._services, self._config)
        except ServiceFailed as failed:
            return [candidate.dropped(FINAL if failed.final else FAILED, str(failed))]


class _Fingerprints:
    """Ray Data batch function: numbers of row groups -> key and mark (hex) of the kept candidates with a readable picture."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __call__(self, batch: pa.Table) -> pa.Table:
        found = [(c.key, mark) for c in _row_groups(self._file, batch) if c.kept and (mark := _mark(c.image)) is not None]
        return pa.table({"key": pa.array([key for key, _ in found], pa.string()), "mark": pa.array([m for _, m in found], pa.string())})


def _mark(picture: bytes) -> str | None:
    try:
        return f"{fingerprint(picture):x}"
    except Exception:  # a foreign decoder on foreign bytes: on garbage Pillow raises almost anything
        return None


def _row_groups(file: str, batch: pa.Table) -> list[Candidate]:
    with pq.ParquetFile(file) as parquet:
        return [c for group in batch.column("group").to_pylist() for c in from_table(parquet.read_row_group(group))]
