"""What stands between a tool call and a provider: concurrency, shared rate limit, breaker, retries, one deadline.

Promise: a call makes at most `attempts` requests, each at most `timeout_seconds` long, and ends by its deadline; a
provider that is down sees few requests and is tried again by one probe per cooldown, for which the callers wait as long
as their deadline and attempts allow. Only what says something about the provider moves breaker and concurrency: a
request that the caller's own deadline cut short says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from mmsr_ray.config import ProviderConfig
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.limits import Aimd, Breaker
from mmsr_ray.tools.measures import OK, Observer
from mmsr_ray.tools.quota import Tokens
from mmsr_ray.tools.slots import Slots
from mmsr_ray.tools.till import Bill, Payer
from mmsr_ray.types import ToolFailure

logger = logging.getLogger(__name__)
T = TypeVar("T")

_BREAKS = {ToolFailure.TIMEOUT, ToolFailure.UNAVAILABLE, ToolFailure.BAD_RESPONSE}  # a 4xx or a 429 says: alive
_OVERLOAD = {ToolFailure.TIMEOUT, ToolFailure.UNAVAILABLE, ToolFailure.RATE_LIMITED}  # garbage says: wrong, not busy
_DEFAULT_HOLD = 1.0  # seconds of silence after a 429 that names none
_BACKOFF_SECONDS, _BACKOFF_MOST, _JITTER = 0.1, 4.0, 0.2


@dataclass(slots=True)
class Trace:
    """What one tool call has used. `deadline` is event-loop time; `attempts` the most that any one request needed."""

    deadline: float
    requests: int = 0
    attempts: int = 0
    cost_usd: float = 0.0
    partial: bool = False  # fewer hits than wanted, though there was more to try


class Guard:
    """The limits of one service in this process."""

    def __init__(
        self,
        service: str,
        config: ProviderConfig,
        tokens: Tokens,
        breaker: Breaker,
        payer: Payer,
        observer: Observer,
        *,
        attempts: int,
        concurrency: int,
    ) -> None:
        self._payer, self._observer = payer, observer
        self.service, self._config, self._tokens, self._breaker, self._attempts = service, config, tokens, breaker, attempts
        self._aimd = Aimd(concurrency)
        self._slots = Slots(self._aimd)
        self._news = asyncio.Event()  # set, and replaced, when the breaker opens or closes
        self.counts: Counter[str] = Counter()

    def stats(self) -> dict[str, float]:
        """requests, <failure>, breaker_opened; concurrency (the limit now) and concurrency_decreases."""
        counted: dict[str, float] = dict(self.counts)
        return counted | {"concurrency": self._aimd.limit, "concurrency_decreases": self._aimd.decreases}

    async def call(self, trace: Trace, request: Callable[[], Awaitable[T]]) -> T:
        """The request's value. Raises ProviderError: the last attempt's."""
        for attempt in range(1, self._attempts + 1):
            trace.attempts = max(trace.attempts, attempt)
            try:
                return await self._attempt(trace, request)
            except ProviderError as error:
                pause = _backoff(attempt)  # a silence that the service asked for runs meanwhile
                late = asyncio.get_running_loop().time() + max(pause, error.retry_after or 0.0) >= trace.deadline
                if attempt == self._attempts or not error.retry or late:
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, trace: Trace, request: Callable[[], Awaitable[T]]) -> T:
        admitted = await self._admission(trace.deadline)  # outside the slots: a queue must not wait out one cooldown after another
        try:
            await self._slots.take(trace.deadline)
        except TimeoutError:
            raise ProviderError(ToolFailure.TIMEOUT, f"{self.service}: still queued at the call's deadline", retry=False) from None
        try:
            async with self._payer.reserve(trace.deadline) as bill:
                await self._tokens.take(trace.deadline)
                if self._breaker.openings != admitted:
                    raise ProviderError(ToolFailure.UNAVAILABLE, f"{self.service}: breaker opened while the call was queued")
                return await self._request(trace, request, bill)
        finally:
            self._slots.give_back()

    async def _request(self, trace: Trace, request: Callable[[], Awaitable[T]], bill: Bill) -> T:
        """One request, what it cost, and what its outcome tells the limits."""
        trace.requests += 1
        self.counts["requests"] += 1
        epoch, began = self._aimd.epoch, asyncio.get_running_loop().time()
        end = min(trace.deadline, began + self._config.timeout_seconds)
        try:
            async with asyncio.timeout_at(end):
                value = await request()
        except TimeoutError:
            error = self._late(end == trace.deadline)
            self._observe(error.failure, began, bill)
            self._failed(error, epoch, blamed=2 * (end - began) >= self._config.timeout_seconds)
            raise error from None
        except ProviderError as error:
            if error.failure is ToolFailure.NO_RESULTS:
                self._charge(trace, bill)
            self._observe(error.failure, began, bill)
            self._failed(error, epoch)
            await self._obey(error, trace.deadline)
            raise
        self._aimd.success(epoch)
        self._alive()
        self._charge(trace, bill, value)
        self._observe(OK, began, bill)
        return value

    def _late(self, was_deadline: bool) -> ProviderError:
        if was_deadline:
            return ProviderError(ToolFailure.TIMEOUT, f"{self.service}: the call's deadline passed", retry=False)
        return ProviderError(ToolFailure.TIMEOUT, f"{self.service}: no answer in {self._config.timeout_seconds:g} s")

    def _charge(self, trace: Trace, bill: Bill, value: object = None) -> None:
        """Services charge for what they answered."""
        bill.answered(value)
        trace.cost_usd += bill.usd

    def _observe(self, outcome: str, began: float, bill: Bill) -> None:
        self._observer.request(self.service, outcome, asyncio.get_running_loop().time() - began, bill.usd)

    def _failed(self, error: ProviderError, epoch: int, *, blamed: bool = True) -> None:
        self.counts[str(error.failure)] += 1
        if not blamed:
            return
        if error.failure not in _OVERLOAD:
            self._aimd.success(epoch)
        elif not self._breaker.is_open:  # a service that is down is the breaker's affair: it comes back to its old concurrency
            self._aimd.overload(epoch)
        if error.failure not in _BREAKS:
            self._alive()
            return
        again = self._breaker.is_open
        if self._breaker.failure():
            self.counts["breaker_opened"] += 1
            self._announce()
            if not again:  # said once, not after every probe
                logger.warning("%s: breaker opened after %s", self.service, error.detail)

    def _alive(self) -> None:
        closes = self._breaker.is_open
        self._breaker.success()
        if closes:
            self._announce()
            logger.warning("%s: is back", self.service)

    def _announce(self) -> None:
        """Wake those that wait for the breaker."""
        self._news.set()
        self._news = asyncio.Event()

    async def _admission(self, deadline: float) -> int:
        """Wait out an open breaker, through at most one probe of somebody else's; the breaker's openings when let through."""
        loop = asyncio.get_running_loop()
        seen = self._breaker.openings
        while (wait := self._breaker.admit()) > 0:
            left = deadline - loop.time()
            if self._breaker.openings != seen:
                raise ProviderError(ToolFailure.UNAVAILABLE, f"{self.service}: breaker open, the probe failed")
            if left <= 0 or (wait >= left and not self._breaker.probing):
                raise ProviderError(ToolFailure.UNAVAILABLE, f"{self.service}: breaker open until after the deadline", retry=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait, left)):
                    await self._news.wait()
        return seen

    async def _obey(self, error: ProviderError, deadline: float) -> None:
        """A service that asks for silence gets it from the whole job."""
        if (seconds := _silence(error)) > 0:
            await self._tokens.hold(seconds, deadline)


def _silence(error: ProviderError) -> float:
    """Seconds without requests that this failure asks for: Retry-After of a 429 or 503, a default for a 429 without."""
    if error.retry_after is not None:
        return error.retry_after
    return _DEFAULT_HOLD if error.failure is ToolFailure.RATE_LIMITED else 0.0


def _backoff(attempt: int) -> float:
    """Seconds between attempt number `attempt` and the next: exponential, with jitter so that callers do not come back in step."""
    return min(_BACKOFF_MOST, _BACKOFF_SECONDS * 2 ** (attempt - 1)) + random.uniform(0.0, _JITTER)
