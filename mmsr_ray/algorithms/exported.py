"""The numbers of a training run for Prometheus, through Ray's metrics: its settings, its steps, its queues as they are now.

Promise: thin; values come from the step's record and from what is looked at anyway. The last values are told while this process lives, also
while a step stands still (metrics.exported.Gauges), so that this is seen from outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmsr_ray.config import Config
from mmsr_ray.metrics import catalogue as m
from mmsr_ray.metrics.exported import Gauges
from mmsr_ray.metrics.steps import Steps, Value


class Exported:
    """Of one Algorithm. Made when training is about to begin."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._gauges = Gauges({"run": config.run.name})
        self._steps, self._clock = Steps(), clock
        self._gauges.set(m.STEPS_WANTED, config.grpo.steps)
        self._gauges.set(m.STALENESS_BOUND, config.grpo.staleness)
        self._gauges.set(m.RUNNERS_WANTED, config.rollout.num_runners)
        self._gauges.set(m.BUDGET, config.tools.budget_usd)
        self._gauges.set(m.EVALUATING, 0)
        self._set(self._steps.before())
        self.at(0)

    def at(self, step: int) -> None:
        """Training goes on from here."""
        self._gauges.set(m.STEP, step)
        self._progress()

    def step(self, record: Mapping[str, Any]) -> None:
        """A step ended; `record` is its line of metrics.jsonl."""
        self._set(self._steps.after(record))
        self._progress()

    def now(self, stages: Mapping[str, int], runners: int) -> None:
        """Groups by stage, and runners that can be given prompts. Cheap: called while groups are waited for."""
        for stage, count in stages.items():
            self._gauges.set(m.GROUPS, count, {"stage": stage})
        self._gauges.set(m.RUNNERS, runners)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Questions are evaluated inside: no step is expected to end."""
        self._gauges.set(m.EVALUATING, 1)
        try:
            yield
        finally:
            self._gauges.set(m.EVALUATING, 0)
            self._progress()

    def stop(self) -> None:
        """The run is over, or goes on in another process."""
        self._gauges.stop()

    def _progress(self) -> None:
        self._gauges.set(m.PROGRESS, self._clock())

    def _set(self, values: list[Value]) -> None:
        for metric, labels, value in values:
            self._gauges.set(metric, value, labels)
