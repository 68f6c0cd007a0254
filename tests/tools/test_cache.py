"""Single-flight over a store: what is kept, for how long, and who waits for whom."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from mmsr_ray.tools.cache import FlightCache, key_of
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.stores.base import Entry, Item, LayeredStore, MemoryStore
from mmsr_ray.types import ToolFailure

MEGABYTE = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Source:
    """A producer that counts: `answers[n - 1]` is the outcome of call n, the last one of all that follow."""

    def __init__(self, *answers: bytes | ProviderError, seconds: float = 0.0) -> None:
        self.answers, self.seconds, self.calls = answers, seconds, 0

    async def __call__(self) -> bytes:
        self.calls += 1
        await asyncio.sleep(self.seconds)
        answer = self.answers[min(self.calls, len(self.answers)) - 1]
        if isinstance(answer, ProviderError):
            raise answer
        return answer


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def in_memory(clock: Clock | None = None, *, keep_seconds: float = float("inf"), negative_seconds: float = 0.0) -> FlightCache:
    clock = clock or Clock()
    return FlightCache(MemoryStore(MEGABYTE, clock), keep_seconds=keep_seconds, negative_seconds=negative_seconds, clock=clock)


def test_keys_know_where_a_part_ends() -> None:
    assert key_of("ab", "c") != key_of("a", "bc")
    assert len(key_of("\ud800")) == 64


async def test_one_flight_for_many_callers_and_no_failure_kept() -> None:
    cache = in_memory(negative_seconds=300.0)
    source = Source(ProviderError(ToolFailure.UNAVAILABLE, "down"), b"v", seconds=0.05)
    first = await asyncio.gather(*(cache.get("x", "k", source, soon()) for _ in range(8)), return_exceptions=True)
    assert all(isinstance(e, ProviderError) for e in first)
    assert source.calls == 1
    assert await asyncio.gather(*(cache.get("x", "k", source, soon()) for _ in range(8))) == [b"v"] * 8
    assert source.calls == 2
    assert await cache.get("x", "k", source, soon()) == b"v"
    assert cache.counts == {"x.misses": 2, "x.joined": 14, "x.hits": 1}


@pytest.mark.parametrize("failure", [f for f in ToolFailure if f is not ToolFailure.NO_RESULTS])
async def test_failures_of_the_infrastructure_are_never_kept(failure: ToolFailure) -> None:
    cache, source = in_memory(negative_seconds=300.0), Source(ProviderError(failure, "no"))
    for _ in range(3):
        with pytest.raises(ProviderError):
            await cache.get("x", "k", source, soon())
    assert source.calls == 3


async def test_nothing_found_is_believed_for_a_while_and_asked_again_then() -> None:
    clock = Clock()
    cache, source = in_memory(clock, negative_seconds=300.0), Source(ProviderError(ToolFailure.NO_RESULTS, "HTTP 404 gone"), b"v")
    for _ in range(3):
        with pytest.raises(ProviderError, match="HTTP 404 gone") as caught:
            await cache.get("x", "k", source, soon())
        assert caught.value.failure is ToolFailure.NO_RESULTS
        assert not caught.value.retry
    assert (source.calls, cache.counts["x.negative_hits"], cache.counts["x.hits"]) == (1, 2, 0)
    clock.now += 299
    with pytest.raises(ProviderError):
        await cache.get("x", "k", source, soon())
    clock.now += 1
    assert await cache.get("x", "k", source, soon()) == b"v"
    assert source.calls == 2


async def test_zero_negative_seconds_believes_nothing() -> None:
    cache, source = in_memory(), Source(ProviderError(ToolFailure.NO_RESULTS, "nothing"))
    for _ in range(2):
        with pytest.raises(ProviderError):
            await cache.get("x", "k", source, soon())
    assert source.calls == 2


async def test_answers_are_asked_for_anew_after_their_time() -> None:
    clock = Clock()
    cache, source = in_memory(clock, keep_seconds=100.0), Source(b"1", b"2", b"3")
    assert await cache.get("x", "k", source, soon()) == b"1"
    clock.now += 99
    assert await cache.get("x", "k", source, soon()) == b"1"
    clock.now += 1
    assert await cache.get("x", "k", source, soon(), keep_seconds=10.0) == b"2"  # this one says how long it is good
    clock.now += 10
    assert await cache.get("x", "k", source, soon()) == b"3"


async def test_a_caller_that_leaves_does_not_spoil_it_for_the_others() -> None:
    cache, source = in_memory(), Source(b"v", seconds=0.1)
    leader = asyncio.create_task(cache.get("x", "k", source, soon()))
    await asyncio.sleep(0.01)
    follower = asyncio.create_task(cache.get("x", "k", source, soon()))
    await asyncio.sleep(0.01)
    leader.cancel()
    assert await follower == b"v"
    assert source.calls == 1


async def test_joining_a_flight_with_an_earlier_deadline() -> None:
    cache, calls = in_memory(), 0

    async def produce() -> bytes:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.2 if calls == 1 else 0.0)
        return b"v"

    hasty = asyncio.create_task(cache.get("x", "k", produce, soon(0.1)))
    await asyncio.sleep(0.02)
    assert await cache.get("x", "k", produce, soon(2.0)) == b"v"
    with pytest.raises(ProviderError) as caught:
        await hasty
    assert caught.value.failure is ToolFailure.TIMEOUT
    assert calls == 2


async def test_a_deadline_that_has_passed_starts_nothing() -> None:
    cache, source = in_memory(), Source(b"v")
    with pytest.raises(ProviderError) as caught:
        await cache.get("x", "k", source, soon(-1.0))
    assert (caught.value.failure, source.calls) == (ToolFailure.TIMEOUT, 0)


async def test_closing_ends_what_is_under_way() -> None:
    cache, source = in_memory(), Source(b"v", seconds=60.0)
    waiting = asyncio.create_task(cache.get("x", "k", source, soon(60.0)))
    await asyncio.sleep(0.01)
    await cache.close()
    with pytest.raises(ProviderError, match="closed"):
        await waiting


class SlowStore:
    """A store behind the memory that takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.entries = seconds, dict[tuple[str, str], Entry]()

    async def get_all(self, keys: Sequence[tuple[str, str]]) -> list[Entry | None]:
        await asyncio.sleep(self.seconds)
        return [self.entries.get(key) for key in keys]

    async def put_all(self, items: Sequence[Item]) -> None:
        await asyncio.sleep(self.seconds)
        self.entries.update({(layer, key): entry for layer, key, entry in items})

    async def close(self) -> None:
        return

    async def problem(self) -> str:
        return ""


async def test_a_slow_store_is_asked_once_and_loses_no_result_at_the_deadline() -> None:
    back = SlowStore(0.6)
    cache = FlightCache(LayeredStore(MemoryStore(MEGABYTE), back, Counter()))
    source = Source(b"v")
    assert await asyncio.gather(*(cache.get("x", "k", source, soon(1.1)) for _ in range(8))) == [b"v"] * 8  # does not wait for the write
    assert source.calls == 1
    await asyncio.sleep(0.9)
    assert back.entries["x", "k"].value == b"v"


async def test_namespaces_see_nothing_of_each_other() -> None:
    store = MemoryStore(MEGABYTE)
    one, two = FlightCache(store, namespace="one"), FlightCache(store, namespace="two")
    assert await one.get("x", "k", Source(b"1"), soon()) == b"1"
    assert await two.get("x", "k", Source(b"2"), soon()) == b"2"
    assert await one.get("x", "k", Source(b"3"), soon()) == b"1"
