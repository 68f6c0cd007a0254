"""Token bucket, adaptive concurrency and breaker under a clock that the test turns."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.tools.limits import UNLIMITED, Aimd, Breaker, TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_burst_then_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=2.0, burst=3, clock=clock)
    assert bucket.lease(10).tokens == 3
    empty = bucket.lease(1)
    assert empty.tokens == 0
    assert abs(empty.wait - 0.5) < 1e-9
    clock.now += 0.5
    assert bucket.lease(10).tokens == 1
    clock.now += 1000
    assert bucket.lease(10).tokens == 3  # never more than the burst


def test_hold_stops_everybody_and_is_not_cut_short() -> None:
    clock = Clock()
    for rate in (0.0, 5.0):
        bucket = TokenBucket(rate, 5, clock)
        bucket.hold(10.0)
        bucket.hold(1.0)
        clock.now += 9.0
        assert bucket.lease(1).tokens == 0
        assert abs(bucket.lease(1).wait - 1.0) < 1e-9
        clock.now += 1.0
        assert bucket.lease(1).tokens == (1 if rate else UNLIMITED)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 20)), max_size=40), st.floats(0.1, 50), st.integers(1, 20))
def test_never_more_than_burst_plus_rate(steps: list[tuple[float, int]], rate: float, burst: int) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    granted, start = 0, clock.now
    for seconds, want in steps:
        clock.now += seconds
        lease = bucket.lease(want)
        assert 0 <= lease.tokens <= want
        assert (lease.tokens == 0) == (lease.wait > 0)
        granted += lease.tokens
        assert granted <= burst + rate * (clock.now - start) + 1e-5


def test_breaker_opens_probes_and_closes() -> None:
    clock = Clock()
    breaker = Breaker(failures=3, cooldown=5.0, clock=clock)
    assert [breaker.failure() for _ in range(3)] == [False, False, True]
    assert breaker.admit() == 5.0
    assert not breaker.failure()  # a straggler neither extends nor counts
    clock.now += 5.0
    assert breaker.admit() == 0.0  # the probe
    assert breaker.admit() == 5.0  # everybody else waits for it, or for the next probe if it is lost
    assert breaker.probing
    assert breaker.failure()
    assert breaker.openings == 2
    assert breaker.admit() == 5.0
    clock.now += 5.0
    assert breaker.admit() == 0.0
    breaker.success()
    assert breaker.admit() == breaker.admit() == 0.0
    assert [breaker.failure() for _ in range(2)] == [False, False]
    breaker.success()
    assert [breaker.failure() for _ in range(2)] == [False, False]  # only failures in a row count


def test_a_lost_probe_is_replaced() -> None:
    clock = Clock()
    breaker = Breaker(failures=1, cooldown=2.0, clock=clock)
    breaker.failure()
    clock.now += 2.0
    assert breaker.admit() == 0.0
    clock.now += 2.0
    assert breaker.admit() == 0.0


def test_breaker_that_never_opens() -> None:
    breaker = Breaker(failures=0, cooldown=1.0, clock=Clock())
    assert not any(breaker.failure() for _ in range(100))
    assert breaker.admit() == 0.0


def rounds(aimd: Aimd, count: int, failing: float, rng: random.Random) -> list[int]:
    """The limit after each of `count` rounds of as many requests as it allows, a share of which is overload."""
    limits = []
    for _ in range(count):
        epoch = aimd.epoch
        for _ in range(aimd.limit):
            (aimd.overload if rng.random() < failing else aimd.success)(epoch)
        limits.append(aimd.limit)
    return limits


def test_concurrency_starts_at_the_ceiling_and_a_burst_of_failures_counts_once() -> None:
    aimd = Aimd(64)
    begun = aimd.epoch
    for _ in range(64):  # all sent before the first failure came back
        aimd.overload(begun)
    assert (aimd.limit, aimd.decreases) == (32, 1)
    for _ in range(32):
        aimd.success(begun)  # of before the decrease too: says nothing about the new limit
    assert aimd.limit == 32


def test_concurrency_falls_to_one_and_no_further_and_recovers_by_one_a_round() -> None:
    aimd = Aimd(64)
    assert rounds(aimd, 8, 1.0, random.Random(0)) == [32, 16, 8, 4, 2, 1, 1, 1]
    assert aimd.decreases == 6
    assert rounds(aimd, 70, 0.0, random.Random(0)) == [*range(2, 65), *[64] * 7]


@pytest.mark.parametrize("share", [0.1, 0.35])
def test_failures_that_have_nothing_to_do_with_load_do_not_stop_the_traffic(share: float) -> None:
    limits = rounds(Aimd(64), 500, share, random.Random(1))
    assert sum(limits[100:]) / 400 > 48


@given(st.integers(1, 50), st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=300))
def test_concurrency_stays_between_one_and_the_ceiling(ceiling: int, outcomes: list[tuple[bool, int]]) -> None:
    aimd = Aimd(ceiling)
    for bad, late in outcomes:
        before, epoch = aimd.limit, max(0, aimd.epoch - late)
        (aimd.overload if bad else aimd.success)(epoch)
        assert 1 <= aimd.limit <= ceiling
        assert aimd.limit >= before // 2
        assert aimd.limit <= before + 1
