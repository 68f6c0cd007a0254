"""The parts of a step sum to its time, whatever the runners answer or do not answer."""

from __future__ import annotations

import time

import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr_ray.algorithms import timing
from mmsr_ray.algorithms.timing import StepClock, Times, decompose, overlap
from mmsr_ray.rollout.activity import Reading, State

PARTS = ("generate", "tools", "idle", "learn", "sync")


def reading(*, sync: float = 0.0, generate: float = 0.0, tools: float = 0.0, idle: float = 0.0) -> Reading:
    return {State.SYNC: sync, State.GENERATE: generate, State.TOOLS: tools, State.IDLE: idle}


def test_a_step_is_split_by_what_its_runners_did() -> None:
    times = Times(began=100.0, collected=110.0, learned=114.0, synced=115.0)
    readings = [
        {1: reading(), 2: reading()},
        {1: reading(generate=6.0, tools=4.0), 2: reading(generate=2.0, tools=6.0, sync=2.0)},
        {1: reading(generate=8.0, tools=6.0), 2: reading(generate=2.0, tools=6.0, sync=2.0, idle=4.0)},
    ]
    assert decompose(times, [1, 2], readings) == {
        "rollout": 10.0,
        "generate": 4.0,
        "tools": 5.0,
        "idle": 0.0,
        "learn": 4.0,
        "sync": 2.0,
        "total": 15.0,
    }
    assert overlap(times, [1, 2], readings) == 0.5, "one runner of two went on"


SECONDS = st.floats(0.0, 1e5)
READINGS = st.dictionaries(st.integers(1, 3), st.builds(reading, sync=SECONDS, generate=SECONDS, tools=SECONDS, idle=SECONDS))


@settings(deadline=None)
@given(st.lists(SECONDS, min_size=3, max_size=3), st.lists(READINGS, min_size=3, max_size=3))
def test_the_parts_sum_to_the_total(phases: list[float], readings: list[dict[int, Reading]]) -> None:
    times = Times(0.0, phases[0], phases[0] + phases[1], sum(phases))
    parts = decompose(times, [1, 2, 3], readings)
    assert sum(parts[name] for name in PARTS) == pytest.approx(parts["total"], rel=1e-9, abs=1e-6)
    assert 0.0 <= overlap(times, [1, 2, 3], readings) <= 1.0 + 1e-9


@pytest.mark.heavy
def test_a_dead_runner_and_a_mute_one_neither_fail_nor_stall_a_step(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ANSWER_SECONDS", 2.0)

    @ray.remote(num_cpus=0)
    class Runner:
        def __init__(self) -> None:
            self.asked = 0

        def activity(self, mute: bool = False) -> Reading:
            if mute:
                time.sleep(3600)
            self.asked += 1
            return reading(generate=float(self.asked))

    alive, mute, dead = (Runner.remote() for _ in range(3))
    ray.get([alive.activity.remote(), dead.activity.remote()], timeout=60)  # type: ignore[attr-defined]
    ray.kill(dead)  # type: ignore[arg-type]

    def ask() -> dict[int, ray.ObjectRef]:
        return {1: alive.activity.remote(), 2: mute.activity.remote(mute=True), 3: dead.activity.remote()}  # type: ignore[attr-defined]

    marks = iter([0.0, 1.0, 2.0, 3.0])
    clock = StepClock(ask, [1, 2, 3], now=lambda: next(marks))
    clock.collected()
    clock.learned()
    clock.synced()
    began = time.monotonic()
    seconds, went_on = clock.record()
    assert time.monotonic() - began < 60
    assert seconds["generate"] == pytest.approx(1 / 3)
    assert seconds["idle"] == pytest.approx(2 / 3)
    assert went_on == pytest.approx(1 / 3)
    assert seconds["total"] == 3.0
