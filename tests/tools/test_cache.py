"""Stores and single-flight."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mmsr_ray.config import CacheConfig
from mmsr_ray.tools.cache import FlightCache, MemoryStore, SqliteStore, Store, key_of, open_store
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.types import ToolFailure


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_store_keeps_layers_apart(kind: str, tmp_path: Path) -> None:
    store: Store = open_store(CacheConfig(dir="" if kind == "memory" else str(tmp_path / "deep" / "er")))
    store.put("a", "k", b"1")
    store.put("b", "k", b"2")
    store.put("a", "k", b"3")
    assert (store.get("a", "k"), store.get("b", "k"), store.get("c", "k")) == (b"3", b"2", None)
    store.close()


def test_memory_store_forgets_the_least_recently_used() -> None:
    store = MemoryStore(100)
    for i in range(4):
        store.put("x", str(i), bytes(30))
        store.get("x", "0")
    assert [store.get("x", str(i)) is not None for i in range(4)] == [True, False, True, True]
    store.put("x", "huge", bytes(1000))
    assert store.get("x", "huge") is None


def test_file_is_shared_and_a_broken_one_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tools.sqlite"
    path.write_bytes(b"this is no database, " * 100)
    one, two = SqliteStore(path), SqliteStore(path)
    one.put("x", "k", b"v")
    assert two.get("x", "k") == b"v"
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 1
    one.close()
    assert one.get("x", "k") is None  # a store that fails is a miss, said in the log
    assert "counted as a miss" in caplog.text


def test_keys_know_where_a_part_ends() -> None:
    assert key_of("ab", "c") != key_of("a", "bc")
    assert len(key_of("\ud800")) == 64


async def test_one_flight_for_many_callers_and_no_failure_kept() -> None:
    cache, calls = FlightCache(MemoryStore(1_000)), 0

    async def produce() -> bytes:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.05)
        if calls == 1:
            raise ProviderError(ToolFailure.UNAVAILABLE, "down")
        return b"v"

    first = await asyncio.gather(*(cache.get("x", "k", produce, soon()) for _ in range(8)), return_exceptions=True)
    assert all(isinstance(e, ProviderError) for e in first)
    assert calls == 1
    assert await asyncio.gather(*(cache.get("x", "k", produce, soon()) for _ in range(8))) == [b"v"] * 8
    assert calls == 2
    assert await cache.get("x", "k", produce, soon()) == b"v"
    assert cache.counts["x.hits"] == 1


async def test_a_caller_that_leaves_does_not_spoil_it_for_the_others() -> None:
    cache = FlightCache(MemoryStore(1_000))

    async def produce() -> bytes:
        await asyncio.sleep(0.1)
        return b"v"

    leader = asyncio.create_task(cache.get("x", "k", produce, soon()))
    await asyncio.sleep(0.01)
    follower = asyncio.create_task(cache.get("x", "k", produce, soon()))
    await asyncio.sleep(0.01)
    leader.cancel()
    assert await follower == b"v"


async def test_joining_a_flight_with_an_earlier_deadline() -> None:
    cache, calls = FlightCache(MemoryStore(1_000)), 0

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
