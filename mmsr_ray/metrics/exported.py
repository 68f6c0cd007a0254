"""Makes the catalogue's metrics as Ray's. Thin; to be used in an actor, a task or a driver of Ray.

Ray refuses a label that was not declared, and a value without all its labels.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TypeVar

from ray.util.metrics import Counter, Gauge, Histogram

from mmsr_ray.metrics.catalogue import Kind, Metric

AGAIN_SECONDS = 1.0  # Ray reports every 10 s unless it is told otherwise, and at most once a second
Labels = Mapping[str, str]
M = TypeVar("M", Counter, Gauge, Histogram)


def counter(metric: Metric, given: Labels | None = None) -> Counter:
    """`given`: labels that are the same for every value that this process tells."""
    assert metric.kind is Kind.COUNTER, metric.name
    return _with(Counter(metric.name, _help(metric), metric.labels), given)


def gauge(metric: Metric, given: Labels | None = None) -> Gauge:
    assert metric.kind is Kind.GAUGE, metric.name
    return _with(Gauge(metric.name, _help(metric), metric.labels), given)


def histogram(metric: Metric, given: Labels | None = None) -> Histogram:
    assert metric.kind is Kind.HISTOGRAM, metric.name
    return _with(Histogram(metric.name, _help(metric), list(metric.buckets), metric.labels), given)


def _help(metric: Metric) -> str:
    return f"{metric.help} ({metric.unit})" if metric.unit else metric.help


def _with(made: M, given: Labels | None) -> M:
    made.set_default_tags(dict(given or {}))
    return made


class Gauges:
    """Gauges that keep their value. Ray tells a value once and forgets it two report intervals later, so a thread says all of them again
    until `stop`: they are there while this process lives, also while its other threads wait.
    """

    def __init__(self, given: Labels, every: float = AGAIN_SECONDS) -> None:
        """`given`: as for `gauge`."""
        self._given, self._made = given, dict[str, Gauge]()
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}  # by name and labels
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._every = every
        threading.Thread(target=self._repeat, name="gauges", daemon=True).start()

    def set(self, metric: Metric, value: float, labels: Labels | None = None) -> None:
        with self._lock:
            if metric.name not in self._made:
                self._made[metric.name] = gauge(metric, self._given)
            self._values[metric.name, tuple((labels or {}).items())] = value
            self._made[metric.name].set(value, dict(labels or {}))

    def stop(self) -> None:
        """What was told fades away."""
        self._stopped.set()

    def _repeat(self) -> None:
        while not self._stopped.wait(self._every):
            with self._lock:
                for (name, labels), value in self._values.items():
                    self._made[name].set(value, dict(labels))
