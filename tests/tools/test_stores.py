"""Stores: memory, a file under kill and corruption, and what happens when one behind the memory fails."""

from __future__ import annotations

import asyncio
import logging
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from mmsr_ray.config import CacheConfig, Config, ConfigError, validate
from mmsr_ray.tools.errors import ToolsError
from mmsr_ray.tools.stores import open_store
from mmsr_ray.tools.stores.base import Entry, Item, LayeredStore, MemoryStore, Store, StoreError
from mmsr_ray.tools.stores.sqlite import SqliteStore

MEGABYTE = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def value_of(entry: Entry | None) -> bytes | None:
    return None if entry is None else entry.value


async def read(store: Store, layer: str, key: str) -> Entry | None:
    return (await store.get_all([(layer, key)]))[0]


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_store_keeps_layers_apart_and_says_what_is_not_there(kind: str, tmp_path: Path) -> None:
    store = open_store(CacheConfig(dir="" if kind == "memory" else str(tmp_path / "deep" / "er")), Counter())
    store.put("a", "k", Entry(b"1"))
    store.put("b", "k", Entry(b"2"))
    store.put("a", "k", Entry(b"3"))
    store.put("a", "gone", Entry(b"why", time.time() + 60, found=False))
    assert [value_of(await store.get(layer, "k")) for layer in "abc"] == [b"3", b"2", None]
    assert not (await store.get("a", "gone") or Entry(b"")).found
    assert value_of(store.peek("a", "k")) == b"3"
    await store.close()


async def test_memory_forgets_the_least_recently_used_and_what_expired() -> None:
    clock = Clock()
    store = MemoryStore(3 * 1000, clock)
    for i in range(4):
        store.put("x", str(i), Entry(bytes(500)))
        store.peek("x", "0")
    assert [store.peek("x", str(i)) is not None for i in range(4)] == [True, False, True, True]
    store.put("x", "huge", Entry(bytes(10_000)))  # fits nowhere, and drives nothing out
    assert [store.peek("x", key) is not None for key in ("huge", "0")] == [False, True]
    store.put("x", "0", Entry(b"short", clock.now + 10))
    clock.now += 10
    assert store.peek("x", "0") is None


async def test_file_entries_expire_and_make_room(tmp_path: Path) -> None:
    clock = Clock()
    store = SqliteStore(tmp_path / "c.sqlite", clock=clock)
    for i in range(40):
        await store.put_all([("x", str(i), Entry(b"v", clock.now + 10))])
    clock.now += 10
    assert await read(store, "x", "0") is None
    for i in range(3):
        await store.put_all([("y", str(i), Entry(b"v"))])
    await store.close()
    rows = sqlite3.connect(tmp_path / "c.sqlite").execute("select layer, count(*) from entries group by layer").fetchall()
    assert rows == [("y", 3)]


async def test_file_stays_within_its_bound_and_keeps_what_is_used(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "c.sqlite"
    store = SqliteStore(path, 2 * MEGABYTE, clock)
    await store.put_all([("x", "hot", Entry(b"kept"))])
    slowest = 0.0
    for i in range(400):
        clock.now += 1
        began = time.perf_counter()
        await store.put_all([("x", str(i), Entry(bytes(20_000)))])
        slowest = max(slowest, time.perf_counter() - began)
        assert value_of(await read(store, "x", "hot")) == b"kept"
    assert await read(store, "x", "0") is None
    assert await read(store, "x", "399") is not None
    await store.close()
    assert path.stat().st_size < 2 * MEGABYTE + 100_000
    assert slowest < 1.0


async def test_file_is_shared_and_a_broken_one_is_left_behind_by_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tools.sqlite"
    path.write_bytes(b"this is no database, " * 100)
    one, two = SqliteStore(path), SqliteStore(path)
    await one.put_all([("x", "k", Entry(b"v"))])
    assert value_of(await read(two, "x", "k")) == b"v"
    assert path.read_bytes().startswith(b"this is no database")
    assert "tools.sqlite is broken" in caplog.text.replace("\n", " ")
    await one.close()
    await two.close()
    three = SqliteStore(path)
    assert value_of(await read(three, "x", "k")) == b"v"
    await three.close()


async def test_file_that_breaks_in_the_middle_of_a_run_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "tools.sqlite"
    one, two = SqliteStore(path), SqliteStore(path)
    for i in range(200):
        await one.put_all([("x", str(i), Entry(bytes(3_000)))])
    await one.close()
    one = SqliteStore(path)
    with sqlite3.connect(path) as db:
        db.execute("pragma wal_checkpoint(truncate)")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 300_000)

    async def read_all(store: SqliteStore) -> None:
        for i in range(200):
            await read(store, "x", str(i))

    for store in (one, two):
        with pytest.raises(StoreError):
            await read_all(store)
    await one.put_all([("x", "new", Entry(b"v"))])
    assert value_of(await read(two, "x", "new")) == b"v"
    assert (tmp_path / "tools.1.sqlite").exists()
    await one.close()
    await two.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from typing import ClassVar
from mmsr_ray.tools.stores.base import Entry
from mmsr_ray.tools.stores.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    for i in range(1_000_000):
        await store.put_all([("x", str(i), Entry(str(i).encode() * 100))])
        print(i, flush=True)

asyncio.run(main())
"""


def write_and_be_killed(path: Path, after: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= after:
                break
        writer.send_signal(signal.SIGKILL)


async def test_what_was_put_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    write_and_be_killed(path, 300)
    store = SqliteStore(path)
    assert [value_of(await read(store, "x", str(i))) for i in range(301)] == [str(i).encode() * 100 for i in range(301)]
    await store.close()
    assert sqlite3.connect(path).execute("pragma integrity_check").fetchone() == ("ok",)
    assert not (tmp_path / "c.1.sqlite").exists()


async def test_a_full_disk_costs_requests_not_results(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    back = SqliteStore(tmp_path / "c.sqlite")
    back._file.writer.execute("pragma max_page_count = 20")  # SQLite says "database or disk is full" beyond
    store = LayeredStore(MemoryStore(MEGABYTE), back, counts)
    for i in range(20):
        store.put("x", str(i), Entry(bytes(20_000)))
        await store.written()
    assert [await store.get("x", str(i)) is not None for i in range(20)] == [True] * 20
    assert counts["store.failed"] == 3  # then it is left alone for a while
    assert counts["store.skipped"] > 0
    assert caplog.text.count("disk is full") == 1  # said once, not for every write
    await store.close()


async def test_no_call_waits_for_the_file_on_the_loop(tmp_path: Path) -> None:
    """Another process holds the write lock: reads go on, the loop too, the write gives up."""
    path, counts = tmp_path / "c.sqlite", Counter()
    store = LayeredStore(MemoryStore(MEGABYTE), SqliteStore(path), counts)
    store.put("x", "k", Entry(b"v"))
    await store.written()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")
    store.put("x", "new", Entry(b"w"))
    ticks, writing = 0, asyncio.create_task(store.written())
    while not writing.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 20
    assert counts["store.failed"] == 1
    assert value_of(store.peek("x", "new")) == b"w"
    fresh = SqliteStore(path)
    assert value_of(await read(fresh, "x", "k")) == b"v"
    other.execute("rollback")
    await fresh.close()
    await store.close()


class Broken:
    """A store that fails or hangs, as told."""

    def __init__(self) -> None:
        self.trouble: Callable[[], object] | None = None
        self.asked = 0

    async def _meet(self) -> None:
        self.asked += 1
        if self.trouble is not None:
            result = self.trouble()
            if asyncio.iscoroutine(result):
                await result

    async def get_all(self, keys: Sequence[tuple[str, str]]) -> list[Entry | None]:
        await self._meet()
        return [Entry(b"kept")] * len(keys)

    async def put_all(self, items: Sequence[Item]) -> None:
        await self._meet()

    async def close(self) -> None:
        await self._meet()

    async def problem(self) -> str:
        return ""


async def test_a_store_that_is_down_is_left_alone_and_found_again(caplog: pytest.LogCaptureFixture) -> None:
    def down() -> None:
        raise StoreError("redis://x: ConnectionError")

    clock, counts, back = Clock(), Counter(), Broken()
    store = LayeredStore(MemoryStore(MEGABYTE), back, counts, clock)
    back.trouble = down
    caplog.set_level(logging.WARNING)
    for _ in range(3600):  # an hour, a lookup a second
        assert await store.get("x", "k") is None
        clock.now += 1
    assert back.asked < 3 + 3600 / 5 + 1
    assert counts["store.failed"] == back.asked
    assert len(caplog.records) <= 61
    back.trouble = None
    clock.now += 5
    assert value_of(await store.get("x", "k")) == b"kept"
    assert value_of(store.peek("x", "k")) == b"kept"


async def test_writes_happen_behind_the_callers_and_together(tmp_path: Path) -> None:
    class Counting(SqliteStore):
        batches: ClassVar[list[int]] = []

        async def put_all(self, items: Sequence[Item]) -> None:
            self.batches.append(len(items))
            await super().put_all(items)

    back = Counting(tmp_path / "c.sqlite")
    store = LayeredStore(MemoryStore(100 * MEGABYTE), back, Counter())
    began = time.perf_counter()
    for i in range(1000):
        store.put("x", str(i), Entry(bytes(10_000)))
    assert time.perf_counter() - began < 0.5
    assert value_of(store.peek("x", "999")) == bytes(10_000)
    await store.written()
    assert (sum(back.batches), max(back.batches), len(back.batches)) == (1000, 128, 8)
    store.put("x", "last", Entry(b"v"))
    await store.close()  # writes what is left
    fresh = SqliteStore(tmp_path / "c.sqlite")
    assert [value_of(await read(fresh, "x", key)) for key in ("0", "999", "last")] == [bytes(10_000), bytes(10_000), b"v"]
    await fresh.close()


async def test_a_folder_that_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolsError, match=r"tools\.cache\.dir=.* cannot hold the cache .*: name a folder of a local disk"):
        open_store(CacheConfig(dir=str(tmp_path / "file" / "below")), Counter())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dir": "a", "redis": "redis://h:1/0"}, "both set: keep the redis"),
        ({"redis": "h:6379"}, "no address of a redis"),
        ({"redis": "redis://h:port/0"}, "no address of a redis"),
        ({"redis": "redis://h/words"}, "no address of a redis"),
        ({"redis": "http://h:6379"}, "no address of a redis"),
        ({"redis": "redis://u:s3cret@h:6379"}, "holds a password"),
        ({"redis": "redis://h:6379?password=s3cret"}, "holds a password"),
        ({"memory_bytes": 0}, "memory_bytes"),
        ({"max_bytes": 10}, "max_bytes"),
        ({"days": -1.0}, "days"),
        ({"negative_seconds": -1.0}, "negative_seconds"),
    ],
)
def test_impossible_settings_are_one_sentence(settings: dict[str, object], words: str) -> None:
    config = Config()
    for name, value in settings.items():
        setattr(config.tools.cache, name, value)
    with pytest.raises(ConfigError, match=words) as caught:
        validate(config)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://h", "redis://h:6379/3", "rediss://user@h:6379", "redis://[::1]:6379/0"])
def test_addresses_of_a_redis(url: str) -> None:
    config = Config()
    config.tools.cache.redis = url
    validate(config)
