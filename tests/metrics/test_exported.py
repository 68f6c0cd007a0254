"""Gauges are told again until they are stopped."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from mmsr_ray.metrics import catalogue as m
from mmsr_ray.metrics import exported
from mmsr_ray.metrics.catalogue import Metric
from mmsr_ray.metrics.exported import Gauges


class Heard:
    """In place of Ray's gauge."""

    def __init__(self, enough: int) -> None:
        self.said: Counter[tuple[float, str]] = Counter()
        self.often = threading.Event()
        self._enough = enough

    def set(self, value: float, labels: dict[str, str]) -> None:
        self.said[value, labels["part"]] += 1
        if min(self.said.values()) >= self._enough:
            self.often.set()


def test_the_last_value_of_each_is_told_again_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(enough=3)

    def make(metric: Metric, given: dict[str, str]) -> Heard:
        assert (metric, given) == (m.STEP_SECONDS, {"run": "a"})
        return heard

    monkeypatch.setattr(exported, "gauge", make)
    gauges = Gauges({"run": "a"}, every=0.01)
    gauges.set(m.STEP_SECONDS, 1.0, {"part": "learn"})
    gauges.set(m.STEP_SECONDS, 2.0, {"part": "sync"})
    assert heard.often.wait(60)
    gauges.stop()
    assert set(heard.said) == {(1.0, "learn"), (2.0, "sync")}
