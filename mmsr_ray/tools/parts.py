"""What the two searches share: providers, cache and guards of one process, and the filling of a list of hits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mmsr_ray.config import ToolsConfig
from mmsr_ray.tools.cache import FlightCache
from mmsr_ray.tools.errors import AccountError, ProviderError
from mmsr_ray.tools.guard import Guard, Trace
from mmsr_ray.tools.http import Http
from mmsr_ray.tools.providers import Providers
from mmsr_ray.tools.providers.base import Lead
from mmsr_ray.types import ToolFailure

H = TypeVar("H")  # a hit
L = TypeVar("L")  # what leads to it

SPARES = 2  # leads kept per hit wanted


@dataclass(frozen=True, slots=True)
class Parts:
    """Of one event loop. `guards` by service name (providers.limited_services)."""

    config: ToolsConfig
    topk: int
    http: Http
    providers: Providers
    cache: FlightCache
    guards: Mapping[str, Guard]

    async def leads(self, layer: str, key: str, search: Callable[[], Awaitable[list[Lead]]], trace: Trace) -> list[Lead]:
        """A provider's leads through the cache. Raises ProviderError; NO_RESULTS when there are none."""

        async def produce() -> bytes:
            found = await search()
            if not found:
                raise ProviderError(ToolFailure.NO_RESULTS, "nothing found")
            return json.dumps([[lead.title, lead.url, lead.thumbnail] for lead in found]).encode()

        return [Lead(*fields) for fields in json.loads(await self.cache.get(layer, key, produce, trace.deadline))]


async def fill(leads: Sequence[L], wanted: int, fetch: Callable[[L], Awaitable[H]], trace: Trace) -> list[H]:
    """Up to `wanted` hits in the order of `leads`, fetched together; a lead that fails is replaced by the next.

    No spare is begun before a lead has failed: each one read and summarised is paid for. At the deadline what is there is
    returned; `trace.partial` says that there are fewer hits than were wanted and led to. Raises ProviderError when there
    is no hit: NO_RESULTS if all that failed was pages of their own making, else the infrastructure's failure.
    """
    loop, deadline = asyncio.get_running_loop(), trace.deadline
    remaining: Iterator[tuple[int, L]] = iter(enumerate(leads))
    hits: dict[int, H] = {}
    errors: list[ProviderError] = []

    async def slot() -> None:
        for rank, lead in remaining:  # shared by all slots: each lead is tried once
            if loop.time() >= deadline:
                return
            try:
                hits[rank] = await fetch(lead)
                return
            except ProviderError as error:
                errors.append(error)
                if isinstance(error, AccountError) or error.failure is ToolFailure.BUDGET:
                    return  # the next lead would fare no better, and its page may cost

    slots = [asyncio.create_task(slot()) for _ in range(min(wanted, len(leads)))]
    try:
        async with asyncio.timeout_at(deadline):
            await asyncio.gather(*slots)
    except TimeoutError:
        errors.append(ProviderError(ToolFailure.TIMEOUT, "no hit before the deadline"))
    finally:
        for task in slots:
            task.cancel()
    if broke := next((e for e in errors if e.failure is ToolFailure.BUDGET), None):
        raise broke  # fewer hits for want of money are no answer to train on
    if not hits and errors:
        raise next((e for e in errors if e.failure.infra), errors[0])
    trace.partial = len(hits) < min(wanted, len(leads))
    return [hits[rank] for rank in sorted(hits)]
