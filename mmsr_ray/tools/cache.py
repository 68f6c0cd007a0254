"""What was paid for once is not asked for twice: a store by (layer, key), and single-flight over it.

Promise: `FlightCache.get` runs at most one producer per key at a time. It stores what a producer returned, and for a
short while that there is nothing to be had (NO_RESULTS); a failure of the infrastructure is never stored. Losing the
store costs requests, never a result.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Self

from mmsr_ray.config import CacheConfig
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.limits import Clock
from mmsr_ray.tools.stores import QuickStore, open_store
from mmsr_ray.tools.stores.base import Entry
from mmsr_ray.types import ToolFailure

_DAY = 86_400.0
_FOREVER = float("inf")
_TICK = 0.001  # timers may fire a little early

Producer = Callable[[], Awaitable[bytes]]


def key_of(*parts: str) -> str:
    """Hex sha256 of the parts, unambiguous about where one ends."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


class _Over(Exception):
    """A flight's own deadline passed."""


class FlightCache:
    """Cache -> single-flight -> producer. Use from one event loop.

    A producer runs as a task of its own until `deadline` (event-loop time): callers that give up neither cancel it nor
    spoil it for those that wait. `counts` has hits, negative_hits, joined and misses by layer, and the store's troubles.
    Keys are kept apart by `namespace`.
    """

    def __init__(
        self,
        store: QuickStore,
        counts: Counter[str] | None = None,
        *,
        namespace: str = "",
        keep_seconds: float = _FOREVER,
        negative_seconds: float = 0.0,
        clock: Clock = time.time,
    ) -> None:
        self.store = store
        self.counts: Counter[str] = Counter() if counts is None else counts
        self._space = f"{namespace}/" if namespace else ""
        self._keep, self._negative, self._clock = keep_seconds, negative_seconds, clock
        self._flights: dict[tuple[str, str], asyncio.Task[Entry]] = {}

    @classmethod
    def open(cls, config: CacheConfig, password: str = "") -> Self:
        """Raises ToolsError as `open_store` does."""
        counts: Counter[str] = Counter()
        return cls(
            open_store(config, counts, password),
            counts,
            namespace=config.namespace,
            keep_seconds=config.days * _DAY or _FOREVER,
            negative_seconds=config.negative_seconds,
        )

    async def get(self, layer: str, key: str, produce: Producer, deadline: float, *, keep_seconds: float | None = None) -> bytes:
        """The value of (layer, key), believed for `keep_seconds` (default: as configured) after it was produced.

        Raises ProviderError as the producer did or, within `negative_seconds` of a NO_RESULTS, the same again; TIMEOUT at
        `deadline`.
        """
        loop = asyncio.get_running_loop()
        where = self._space + layer
        while True:
            entry = self.store.peek(where, key)
            if entry is not None:
                return self._hit(layer, entry)
            left = deadline - loop.time()
            if left <= _TICK:
                raise ProviderError(ToolFailure.TIMEOUT, f"{layer}: no answer before the deadline", retry=False)
            flight = self._flights.get((where, key))
            if flight is None:
                flight = self._start(layer, where, key, produce, deadline, self._keep if keep_seconds is None else keep_seconds)
            else:
                self.counts[f"{layer}.joined"] += 1
            await asyncio.wait((flight,), timeout=left)
            if not flight.done():
                continue  # to the deadline, and to what a store that is slow to write has in memory by now
            if flight.cancelled():
                raise ProviderError(ToolFailure.UNAVAILABLE, f"{layer}: the tools were closed", retry=False)
            try:
                return _value(layer, flight.result())
            except _Over:
                continue  # joined a flight whose own deadline came first: there may be time for another

    def _hit(self, layer: str, entry: Entry) -> bytes:
        self.counts[f"{layer}.hits" if entry.found else f"{layer}.negative_hits"] += 1
        return _value(layer, entry)

    def _start(self, layer: str, where: str, key: str, produce: Producer, deadline: float, keep: float) -> asyncio.Task[Entry]:
        flight = asyncio.create_task(self._fly(layer, where, key, produce, deadline, keep))
        flight.add_done_callback(_retrieve)
        self._flights[where, key] = flight
        return flight

    async def _fly(self, layer: str, where: str, key: str, produce: Producer, deadline: float, keep: float) -> Entry:
        try:
            entry = await self.store.get(where, key)
            if entry is not None:
                self.counts[f"{layer}.hits" if entry.found else f"{layer}.negative_hits"] += 1
                return entry
            self.counts[f"{layer}.misses"] += 1
            entry = await self._produce(produce, deadline, keep)
            if entry.expires > self._clock():
                self.store.put(where, key, entry)
            return entry
        finally:
            self._flights.pop((where, key), None)

    async def _produce(self, produce: Producer, deadline: float, keep: float) -> Entry:
        try:
            async with asyncio.timeout_at(deadline):
                return Entry(await produce(), self._clock() + keep)
        except TimeoutError:
            raise _Over from None
        except ProviderError as error:
            if error.failure is not ToolFailure.NO_RESULTS:
                raise
            return Entry(error.detail.encode("utf-8", "replace"), self._clock() + self._negative, found=False)

    async def problem(self) -> str:
        """Why the store cannot be used now, in one sentence; "" when it can."""
        return await self.store.problem()

    async def close(self) -> None:
        """Ends what is under way: those that wait for it get a typed failure."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        if flights:
            await asyncio.wait(flights, timeout=5.0)
        await self.store.close()


def _value(layer: str, entry: Entry) -> bytes:
    if entry.found:
        return entry.value
    raise ProviderError(ToolFailure.NO_RESULTS, entry.value.decode("utf-8", "replace") or f"{layer}: nothing found")


def _retrieve(task: asyncio.Task[Entry]) -> None:
    """Mark the outcome as seen: callers may all have left before the flight failed."""
    if not task.cancelled():
        task.exception()
