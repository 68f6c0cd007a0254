"""What was paid for once is not asked for twice: a byte store by (layer, key), and single-flight over it.

Promise: `FlightCache.get` runs at most one producer per key at a time and stores only what a producer returned, never
a failure. Losing the store (corrupt file, full disk) costs requests, never a result.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from mmsr_ray.config import CacheConfig
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.types import ToolFailure

logger = logging.getLogger(__name__)


def key_of(*parts: str) -> str:
    """Hex sha256 of the parts, unambiguous about where one ends."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


class Store(Protocol):
    def get(self, layer: str, key: str) -> bytes | None: ...

    def put(self, layer: str, key: str, value: bytes) -> None: ...

    def close(self) -> None: ...


class MemoryStore:
    """Least recently used entries leave first; holds at most `limit` bytes of values."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._values: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def get(self, layer: str, key: str) -> bytes | None:
        value = self._values.get((layer, key))
        if value is not None:
            self._values.move_to_end((layer, key))
        return value

    def put(self, layer: str, key: str, value: bytes) -> None:
        self._size += len(value) - len(self._values.pop((layer, key), b""))
        self._values[layer, key] = value
        while self._size > self._limit:
            self._size -= len(self._values.popitem(last=False)[1])

    def close(self) -> None:
        self._values.clear()
        self._size = 0


class SqliteStore:
    """One SQLite file in WAL mode, shared by the processes of one machine (WAL does not work on network file systems).

    Survives a kill at any point. A file that is not a database is moved aside. A read or write that fails is logged
    and counts as a miss.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # locked or not writable: moving it aside would not help
            aside = path.with_suffix(f".corrupt-{int(time.time())}")
            logger.warning("cache %s is not a database (%s): moved to %s", path, error, aside.name)
            path.rename(aside)
            self._db = _open(path)

    def get(self, layer: str, key: str) -> bytes | None:
        try:
            row = self._db.execute("select value from entries where layer = ? and key = ?", (layer, key)).fetchone()
        except sqlite3.Error as error:
            logger.warning("cache read failed, counted as a miss: %s", error)
            return None
        return row[0] if row else None

    def put(self, layer: str, key: str, value: bytes) -> None:
        try:
            self._db.execute("insert or replace into entries values (?, ?, ?, ?)", (layer, key, value, time.time()))
        except sqlite3.Error as error:
            logger.warning("cache write failed, the result is used but not kept: %s", error)

    def close(self) -> None:
        self._db.close()


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = normal")  # a power cut may lose the last entries, a killed process none
    db.execute(
        "create table if not exists entries (layer text, key text, value blob not null, written real not null, primary key (layer, key))"
    )
    return db


def open_store(config: CacheConfig) -> Store:
    """The file `tools.sqlite` in `config.dir`, or memory when that is empty."""
    return SqliteStore(Path(config.dir) / "tools.sqlite") if config.dir else MemoryStore(config.memory_bytes)


class FlightCache:
    """Cache -> single-flight -> producer. Use from one event loop.

    A producer runs as a task of its own until `deadline` (event-loop time): callers that give up neither cancel it nor
    spoil it for those that wait. `counts` has hits, joined and misses by layer.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.counts: Counter[str] = Counter()
        self._flights: dict[tuple[str, str], asyncio.Task[bytes]] = {}

    async def get(self, layer: str, key: str, produce: Callable[[], Awaitable[bytes]], deadline: float) -> bytes:
        """The value of (layer, key). Raises ProviderError as the producer did, or TIMEOUT at `deadline`."""
        while True:
            value = self.store.get(layer, key)
            if value is not None:
                self.counts[f"{layer}.hits"] += 1
                return value
            try:
                async with asyncio.timeout_at(deadline):
                    return await asyncio.shield(self._flight(layer, key, produce, deadline))
            except TimeoutError:
                if asyncio.get_running_loop().time() < deadline:
                    continue  # joined a flight whose own deadline came first: there is time for another
                raise ProviderError(ToolFailure.TIMEOUT, f"{layer}: no answer before the deadline", retry=False) from None

    def _flight(self, layer: str, key: str, produce: Callable[[], Awaitable[bytes]], deadline: float) -> asyncio.Task[bytes]:
        flight = self._flights.get((layer, key))
        if flight is not None:
            self.counts[f"{layer}.joined"] += 1
            return flight
        self.counts[f"{layer}.misses"] += 1
        flight = asyncio.create_task(self._fly(layer, key, produce, deadline))
        flight.add_done_callback(_retrieve)
        self._flights[layer, key] = flight
        return flight

    async def _fly(self, layer: str, key: str, produce: Callable[[], Awaitable[bytes]], deadline: float) -> bytes:
        try:
            async with asyncio.timeout_at(deadline):
                value = await produce()
            self.store.put(layer, key, value)
            return value
        finally:
            self._flights.pop((layer, key), None)


def _retrieve(task: asyncio.Task[bytes]) -> None:
    """Mark the outcome as seen: callers may all have left before the flight failed."""
    if not task.cancelled():
        task.exception()
