"""A few training groups of each step, kept in the run folder for people to read.

Invariant: the bytes never pass through the Algorithm process, and training never waits for them: a task writes them, and
when too many tasks are open a step is left out and said to be.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from mmsr_ray.evaluation import trajectories

logger = logging.getLogger(__name__)

OPEN_WRITES = 16  # a task's process takes seconds to start, and then serves many
FINISH_SECONDS = 60.0


@ray.remote(num_cpus=0, max_retries=1, scheduling_strategy="DEFAULT")  # in the trial's placement group each call would ask the head
def _write(refs: list[ObjectRef], folder: str, step: int) -> str:
    """`refs` travel in a list, so that this task fetches them and nobody else."""
    return str(trajectories.write_groups(Path(folder), ray.get(refs), step=step))


class Keeper:
    """Writes groups as folder/step_<step>.parquet in the background."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[ObjectRef, int] = {}

    def keep(self, groups: Sequence[ObjectRef], step: int) -> None:
        """`groups` are references to `types.Group`."""
        self._close_finished(timeout=0.0, count=len(self._open))
        if len(self._open) >= OPEN_WRITES:
            logger.warning("trajectories are written more slowly than made: those of step %d are left out", step)
        elif groups:
            self._open[_write.remote(list(groups), str(self._folder), step)] = step

    def finish(self) -> None:
        """Wait for what is open, a minute at most."""
        self._close_finished(timeout=FINISH_SECONDS, count=len(self._open))
        if self._open:
            logger.error("trajectories of steps %s were not written within %.0f s", sorted(self._open.values()), FINISH_SECONDS)

    def _close_finished(self, *, timeout: float, count: int) -> None:
        if not self._open:
            return
        for ref in ray.wait(list(self._open), num_returns=count, timeout=timeout)[0]:
            step = self._open.pop(ref)
            try:
                ray.get(ref)
            except RayError:
                logger.exception("the trajectories of step %d were not written", step)
