"""Makes the catalogue's metrics as Ray's. Thin; to be used in an actor, a task or a driver of Ray.

Ray refuses a label that was not declared, and a value without all its labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ray.util.metrics import Counter, Gauge, Histogram

from mmsr_ray.metrics.catalogue import Kind, Metric

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
    """Gauges that are made when they are first set, and held: Ray forgets one that nobody holds."""

    def __init__(self, given: Labels) -> None:
        self._given, self._made = given, dict[str, Gauge]()

    def set(self, metric: Metric, value: float, labels: Labels | None = None) -> None:
        if metric.name not in self._made:
            self._made[metric.name] = gauge(metric, self._given)
        self._made[metric.name].set(value, dict(labels or {}))
