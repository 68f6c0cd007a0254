"""The shared cache against a real redis: two nodes, a password, and every way in which it may let us down."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from mmsr_ray.config import CacheConfig
from mmsr_ray.tools.cache import FlightCache
from mmsr_ray.tools.errors import ProviderError, ToolsError
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.tools.stores.base import Entry, LayeredStore, MemoryStore
from mmsr_ray.tools.stores.redis import PREFIX, RedisStore
from mmsr_ray.types import ToolFailure
from tests.tools.web import KEY, Web, configure

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server on this machine")
MEGABYTE = 1 << 20


@dataclass
class Server:
    """A redis of the test's own."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self, *options: str) -> None:
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        self._launch(options)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
        raise TimeoutError("the redis-server did not listen")

    def _launch(self, options: tuple[str, ...]) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=10)
            self.process = None


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    redis = Server(tmp_path)
    await redis.start()
    yield redis
    redis.stop()


def layered(server: Server, counts: Counter[str] | None = None) -> LayeredStore:
    return LayeredStore(MemoryStore(MEGABYTE), RedisStore(server.url), Counter() if counts is None else counts)


async def read(store: RedisStore, layer: str, key: str) -> Entry | None:
    return (await store.get_all([(layer, key)]))[0]


def soon(seconds: float = 10.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_entries_come_back_on_another_node_under_our_prefix_until_their_time(server: Server) -> None:
    one, two, plain = RedisStore(server.url), RedisStore(server.url), Redis.from_url(server.url)
    value = bytes(range(256)) * 4000
    await one.put_all(
        [
            ("page", "k", Entry(value, time.time() + 3600)),
            ("page", "gone", Entry(b"HTTP 404", time.time() + 2.0, found=False)),
            ("page", "for ever", Entry(b"")),
            ("page", "past", Entry(b"x", time.time() - 1)),
        ]
    )
    assert await read(two, "page", "k") == await read(one, "page", "k")
    kept = await read(two, "page", "k")
    assert kept is not None
    assert kept.value == value
    assert (await read(two, "page", "gone") or Entry(b"")).found is False
    assert await read(two, "page", "for ever") == Entry(b"")
    assert await read(two, "page", "past") is None
    assert set(await plain.keys()) == {f"{PREFIX}:page:{key}".encode() for key in ("k", "gone", "for ever")}
    assert 3500 < await plain.ttl(f"{PREFIX}:page:k") <= 3600
    assert await plain.ttl(f"{PREFIX}:page:for ever") == -1
    await asyncio.sleep(2.1)
    assert await read(two, "page", "gone") is None
    await plain.set(f"{PREFIX}:page:k", b"short")  # somebody else's: a miss, not an error
    assert await read(two, "page", "k") is None
    for client in (one, two):
        await client.close()
    await plain.aclose()


async def test_two_nodes_pay_once(server: Server, web: Web) -> None:
    config = configure(web.root, cache=CacheConfig(redis=server.url))
    async with LocalTools(config) as one, LocalTools(config) as two:
        await one.check()
        first = await one.text_search("q", "x")
        before = web.counts.total()
        second = await two.text_search("q", "x")
        assert second.hits == first.hits
        assert second.cached
        assert web.counts.total() == before


async def test_flushed(server: Server) -> None:
    plain, store = Redis.from_url(server.url), RedisStore(server.url)
    await store.put_all([("x", "k", Entry(b"v"))])
    await plain.flushall()
    assert await read(store, "x", "k") is None
    await store.close()
    await plain.aclose()


async def test_down_and_back_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    cache = FlightCache(layered(server, counts))

    async def produce() -> bytes:
        return b"v"

    assert await cache.get("x", "warm", produce, soon()) == b"v"
    server.stop()
    began = time.perf_counter()
    for wave in range(4):
        assert await asyncio.gather(*(cache.get("x", f"{wave}-{i}", produce, soon()) for i in range(200))) == [b"v"] * 200
    assert time.perf_counter() - began < 3.0
    assert counts["store.failed"] >= 3
    assert counts["store.skipped"] > 0
    assert sum("cache:" in record.message for record in caplog.records) == 1
    await server.start()
    await asyncio.sleep(5.1)  # the breaker's cooldown
    await cache.get("x", "new", produce, soon())
    await cache.close()
    other = RedisStore(server.url)
    assert await read(other, "x", "new") is not None
    await other.close()


async def test_restarted_between_two_requests(server: Server) -> None:
    counts: Counter[str] = Counter()
    store = layered(server, counts)
    await asyncio.gather(*(store.get("x", str(i)) for i in range(50)))  # many pooled connections
    server.stop()
    await server.start()
    await asyncio.gather(*(store.get("y", str(i)) for i in range(50)))
    store.put("y", "k", Entry(b"v"))
    await store.written()
    assert counts["store.failed"] == 0
    await store.close()


async def test_a_redis_that_hangs_costs_a_moment_once(server: Server) -> None:
    counts: Counter[str] = Counter()
    cache = FlightCache(layered(server, counts))

    async def produce() -> bytes:
        return b"v"

    server.signal(signal.SIGSTOP)
    try:
        seconds = []
        for wave in range(6):
            began = time.perf_counter()
            assert await asyncio.gather(*(cache.get("x", f"{wave}-{i}", produce, soon()) for i in range(100))) == [b"v"] * 100
            seconds.append(time.perf_counter() - began)
        assert max(seconds) < 3.0
        assert max(seconds[3:]) < 0.9
    finally:
        server.signal(signal.SIGCONT)
    assert counts["store.failed"] >= 3
    await cache.close()


async def test_full(tmp_path: Path) -> None:
    server, counts = Server(tmp_path), Counter[str]()
    await server.start("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    store = layered(server, counts)
    for i in range(20):
        store.put("x", str(i), Entry(os.urandom(400_000)))
        await store.written()
    assert 0 < counts["store.failed"] <= 3
    assert await store.get("x", "19") is not None  # reads are no worse for it
    await store.close()
    server.stop()


async def test_password_from_the_environment_and_nowhere_else(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(tmp_path)
    await server.start("--requirepass", KEY)
    config = configure(web.root, cache=CacheConfig(redis=server.url, redis_password_env="TEST_REDIS_PASSWORD"))
    with pytest.raises(ToolsError, match=r"needs a password: set the environment variable TEST_REDIS_PASSWORD"):
        LocalTools(config)
    monkeypatch.setenv("TEST_REDIS_PASSWORD", "wrong")
    async with LocalTools(config) as tools:
        with pytest.raises(ToolsError, match=r"tools\.cache\.redis: .* refuses the password"):
            await tools.check()
        assert (await tools.text_search("q", "x")).ok  # a search goes on without
    monkeypatch.setenv("TEST_REDIS_PASSWORD", KEY)
    async with LocalTools(config) as tools:
        await tools.check()
        assert (await tools.text_search("q", "x")).ok
        assert tools.stats().get("cache.store.failed", 0) == 0
        said = caplog.text + repr(tools)
    store = RedisStore(server.url, KEY)
    assert await store._redis.dbsize() > 10
    await store.close()
    server.stop()
    config.tools.cache.redis = "redis://127.0.0.1:9/0"
    async with LocalTools(config) as tools:
        with pytest.raises(
            ToolsError, match=r"tools\.cache\.redis: nothing answers at redis://127.0.0.1:9/0 .*: start the redis"
        ) as caught:
            await tools.check()
    assert KEY not in said + str(caught.value) + caplog.text


async def test_nothing_found_is_shared_between_nodes_for_a_while(server: Server) -> None:
    calls = 0

    async def nothing() -> bytes:
        nonlocal calls
        calls += 1
        raise ProviderError(ToolFailure.NO_RESULTS, "nothing found")

    for _ in range(2):
        cache = FlightCache(layered(server), negative_seconds=3.0)
        with pytest.raises(ProviderError, match="nothing found"):
            await cache.get("x", "k", nothing, soon())
        await cache.close()
    assert calls == 1
    await asyncio.sleep(3.1)
    cache = FlightCache(layered(server), negative_seconds=3.0)
    with pytest.raises(ProviderError, match="nothing found"):
        await cache.get("x", "k", nothing, soon())
    assert calls == 2
    await cache.close()


def test_the_format_on_the_wire() -> None:
    """Of what other runs may have written: change `FORMAT` with it."""
    assert PREFIX == "mmsr-ray:tools:2"
    assert struct.calcsize("<?d") == 9
