"""What one process pays its requests from: money leased from the run's purse, reserved before a request, settled after.

Promise: no request starts before the highest price it can cost is reserved, and what it did not cost is free again when
it ends. When the money is gone the call fails with BUDGET at once; while other requests may yet give some back it waits,
at most until its deadline. A service without a price is never asked to wait. Money that lies idle goes back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from mmsr_ray.config import PriceConfig
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.providers.base import Page, Summary, Usage
from mmsr_ray.tools.purse import NANO, Grant, Purse, highest, price_of
from mmsr_ray.types import ToolFailure

logger = logging.getLogger(__name__)

_LEASED_REQUESTS = 16  # one lease pays for so many of the highest price
_IDLE_SECONDS = 1.0


class Bank(Protocol):
    """Where a process leases money: from a purse in this process (`LocalBank`) or in an actor (tools.actor)."""

    async def lease(self, least: int, want: int, spent: int, back: int) -> Grant: ...

    async def settle(self, spent: int, back: int) -> None: ...


class LocalBank:
    def __init__(self, purse: Purse) -> None:
        self._purse = purse

    async def lease(self, least: int, want: int, spent: int, back: int) -> Grant:
        return self._purse.lease("local", "", least=least, want=want, spent=spent, back=back)

    async def settle(self, spent: int, back: int) -> None:
        self._purse.settle("local", "", spent=spent, back=back)


class Bill:
    """What a request cost, in nano-USD; nothing until its service has answered."""

    def __init__(self, price: PriceConfig) -> None:
        self._price = price
        self.cost = 0

    @property
    def usd(self) -> float:
        return self.cost / NANO

    def answered(self, value: object) -> None:
        """The service answered with `value`; "nothing found" is an answer."""
        self.cost = price_of(self._price, value.usage if isinstance(value, Page | Summary) else Usage())


class Till:
    """For all services of one event loop."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._free = 0  # leased, and not reserved for a request
        self._spent = 0  # not yet reported
        self._short = False  # the last answer was a refusal
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Grant] | asyncio.Task[None]] = set()
        self._idle: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def reserve(self, service: str, price: PriceConfig, amount: int, deadline: float) -> AsyncIterator[Bill]:
        """Inside, `amount` nano-USD are this request's. Raises BUDGET when there is no money; `deadline` is event-loop time."""
        bill = Bill(price)
        if amount == 0:
            yield bill
            return
        await self._take(service, amount, deadline)
        try:
            yield bill
        finally:
            self._free += max(0, amount - bill.cost)
            self._spent += bill.cost
            if bill.cost > amount:
                logger.warning("%s billed %.6f USD for one request, more than was reserved", service, bill.usd)
            self._watch_idleness()

    async def close(self) -> None:
        """Report and give back; what is reserved stays leased."""
        if self._idle is not None:
            self._idle.cancel()
        await self._give_back()

    async def _take(self, service: str, amount: int, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline), self._turn:
                while self._free < amount:
                    task = asyncio.create_task(self._lease(amount))
                    self._keep(task)
                    grant = await asyncio.shield(task)  # a caller that gives up must not lose a lease
                    self._short = grant.amount == 0
                    if self._short and grant.wait == 0:
                        raise ProviderError(ToolFailure.BUDGET, f"{service}: what is left of tools.budget_usd does not pay for a request")
                    await asyncio.sleep(grant.wait)
                self._free -= amount
        except TimeoutError:
            if not self._short:  # silence is no refusal: training must not end for it
                raise ProviderError(ToolFailure.UNAVAILABLE, f"{service}: whoever keeps the money did not answer", retry=False) from None
            raise ProviderError(ToolFailure.BUDGET, f"{service}: the rest of tools.budget_usd is held by other requests") from None

    async def _lease(self, amount: int) -> Grant:
        """What is free goes back with the question, so that two processes never starve each other."""
        spent, back = self._spent, self._free
        self._spent = self._free = 0
        grant = await self._bank.lease(amount, _LEASED_REQUESTS * amount, spent, back)
        self._free += grant.amount
        return grant

    def _watch_idleness(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end_idleness)

    def _end_idleness(self) -> None:
        self._idle = None
        self._keep(asyncio.create_task(self._give_back()))

    async def _give_back(self) -> None:
        spent, back = self._spent, self._free
        if not spent and not back:
            return
        self._spent = self._free = 0
        try:
            await self._bank.settle(spent, back)
        except ProviderError as error:
            logger.warning("unspent money of %.6f USD was not given back: %s", back / NANO, error)

    def _keep(self, task: asyncio.Task[Grant] | asyncio.Task[None]) -> None:
        self._tasks.add(task)  # the loop itself holds no reference
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_retrieve)


class Payer:
    """Pays for the requests of one service."""

    def __init__(self, till: Till, service: str, price: PriceConfig, page_chars: int) -> None:
        self._till, self._service, self._price = till, service, price
        self._highest = highest(service, price, page_chars)

    def reserve(self, deadline: float) -> AbstractAsyncContextManager[Bill]:
        """As `Till.reserve`, for the most that one request may cost."""
        return self._till.reserve(self._service, self._price, self._highest, deadline)


def _retrieve(task: asyncio.Task[Grant] | asyncio.Task[None]) -> None:
    """Mark an error as seen: whoever waited may be gone."""
    if not task.cancelled():
        task.exception()
