"""Where answers are kept: what a store is, the one in memory, and memory in front of one that may fail.

Promise: an entry is never given out after it expired. Losing a store (corrupt file, full disk, dead redis) costs
requests, never a result: `LayeredStore` waits for it briefly, counts and logs what fails, and goes on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mmsr_ray.tools.limits import Breaker, Clock

logger = logging.getLogger(__name__)
T = TypeVar("T")

FORMAT = 2  # of what is kept; part of the file's name and of the keys in redis, so that formats never meet
_ENTRY_BYTES = 500  # of a key and its bookkeeping in memory
_PATIENCE_SECONDS = 2.0  # for one batch behind the memory
_BREAK_AFTER, _COOLDOWN_SECONDS = 3, 5.0  # batches
_UNWRITTEN = 5_000  # entries that wait to be written
_BATCH, _BATCH_BYTES = 128, 4 << 20  # of entries that are read, and written, together
_LOG_EVERY_SECONDS = 60.0


class StoreError(Exception):
    """A read or write that a store could not do. The text may be logged."""


@dataclass(frozen=True, slots=True)
class Entry:
    value: bytes
    expires: float = float("inf")  # time.time() from which it is not believed any more
    found: bool = True  # False: there is nothing, and `value` says why


Item = tuple[str, str, Entry]  # layer, key, entry


class Store(Protocol):
    """Entries by layer and key, somewhere else. Everything may raise StoreError and may be slow."""

    async def get_all(self, keys: Sequence[tuple[str, str]]) -> list[Entry | None]:
        """For each (layer, key) what is there."""
        ...

    async def put_all(self, items: Sequence[Item]) -> None: ...

    async def close(self) -> None: ...

    async def problem(self) -> str:
        """Why the store cannot be used now; "" when it can. Names the setting and the remedy."""
        ...


class QuickStore(Protocol):
    """What a cache works on: `peek` and `put` act at once, nothing raises, nothing hangs."""

    def peek(self, layer: str, key: str) -> Entry | None:
        """The entry where it is at hand."""
        ...

    def put(self, layer: str, key: str, entry: Entry) -> None: ...

    async def get(self, layer: str, key: str) -> Entry | None: ...

    async def close(self) -> None: ...

    async def problem(self) -> str: ...


class MemoryStore:
    """Least recently used entries leave first; holds at most `limit` bytes, keys included."""

    def __init__(self, limit: int, clock: Clock = time.time) -> None:
        self._limit, self._clock, self._size = limit, clock, 0
        self._entries: OrderedDict[tuple[str, str], Entry] = OrderedDict()

    def peek(self, layer: str, key: str) -> Entry | None:
        entry = self._entries.get((layer, key))
        if entry is None:
            return None
        if entry.expires <= self._clock():
            self._forget((layer, key))
            return None
        self._entries.move_to_end((layer, key))
        return entry

    async def get(self, layer: str, key: str) -> Entry | None:
        return self.peek(layer, key)

    def put(self, layer: str, key: str, entry: Entry) -> None:
        self._forget((layer, key))
        if len(entry.value) + _ENTRY_BYTES > self._limit:
            return  # would push out everything else and leave at once
        self._entries[layer, key] = entry
        self._size += len(entry.value) + _ENTRY_BYTES
        while self._size > self._limit:
            self._forget(next(iter(self._entries)))

    async def close(self) -> None:
        self._entries.clear()
        self._size = 0

    async def problem(self) -> str:
        return ""

    def _forget(self, at: tuple[str, str]) -> None:
        entry = self._entries.pop(at, None)
        if entry is not None:
            self._size -= len(entry.value) + _ENTRY_BYTES


class LayeredStore:
    """Memory in front of `back`, which is asked for many entries at a time, and written to behind the callers.

    A process that is killed loses the writes of its last moments. A `back` that keeps failing is left alone for a while,
    reads and writes apart. `counts` gets store.failed and store.skipped, by batch.
    """

    def __init__(self, front: MemoryStore, back: Store, counts: Counter[str], clock: Clock = time.monotonic) -> None:
        self._front, self._back, self._counts, self._clock = front, back, counts, clock
        self._reads, self._writes = (Breaker(_BREAK_AFTER, _COOLDOWN_SECONDS, clock) for _ in range(2))
        self._quiet_until = float("-inf")
        self._wanted: deque[tuple[str, str, asyncio.Future[Entry | None]]] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._unwritten: deque[Item] = deque(maxlen=_UNWRITTEN)  # the oldest are given up first
        self._writer: asyncio.Task[None] | None = None

    def peek(self, layer: str, key: str) -> Entry | None:
        return self._front.peek(layer, key)

    async def get(self, layer: str, key: str) -> Entry | None:
        entry = self._front.peek(layer, key)
        if entry is not None:
            return entry
        answer: asyncio.Future[Entry | None] = asyncio.get_running_loop().create_future()
        self._wanted.append((layer, key, answer))
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())
        entry = await answer
        if entry is not None:
            self._front.put(layer, key, entry)
        return entry

    async def _read(self) -> None:
        while self._wanted:
            batch = [self._wanted.popleft() for _ in range(min(_BATCH, len(self._wanted)))]
            found: list[Entry | None] | None = None
            try:
                found = await self._ask(self._reads, lambda batch=batch: self._back.get_all([(layer, key) for layer, key, _ in batch]))
            finally:  # nobody is left waiting, whatever happened
                for (_, _, answer), entry in zip(batch, found or [None] * len(batch), strict=True):
                    if not answer.done():
                        answer.set_result(entry)

    def put(self, layer: str, key: str, entry: Entry) -> None:
        self._front.put(layer, key, entry)
        if len(self._unwritten) == _UNWRITTEN:
            self._counts["store.skipped"] += 1
        self._unwritten.append((layer, key, entry))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def written(self) -> None:
        """Returns when everything that was put is written or given up."""
        if self._writer is not None:
            await asyncio.shield(self._writer)

    async def _write(self) -> None:
        while self._unwritten:
            batch, size = [], 0
            while self._unwritten and len(batch) < _BATCH and size < _BATCH_BYTES:
                batch.append(self._unwritten.popleft())
                size += len(batch[-1][2].value)
            await self._ask(self._writes, lambda batch=batch: self._back.put_all(batch))

    async def close(self) -> None:
        """Writes what is left, for a few seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * _PATIENCE_SECONDS):
                await self.written()
        for task in (self._reader, self._writer):
            if task is not None:
                task.cancel()
        await self._front.close()
        with contextlib.suppress(TimeoutError, StoreError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._back.close()

    async def problem(self) -> str:
        return await self._back.problem()

    async def _ask(self, breaker: Breaker, work: Callable[[], Awaitable[T]]) -> T | None:
        """What `work` gives; None when it fails, takes too long or is not worth trying now."""
        if breaker.admit() > 0:
            self._counts["store.skipped"] += 1
            return None
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                value = await work()
        except TimeoutError:
            self._trouble(breaker, f"no answer in {_PATIENCE_SECONDS:g} s")
        except StoreError as error:
            self._trouble(breaker, str(error))
        else:
            breaker.success()
            return value
        return None

    def _trouble(self, breaker: Breaker, why: str) -> None:
        breaker.failure()
        self._counts["store.failed"] += 1
        if self._clock() >= self._quiet_until:
            self._quiet_until = self._clock() + _LOG_EVERY_SECONDS
            logger.warning("cache: %s; failed %d times so far, which costs requests, not results", why, self._counts["store.failed"])
