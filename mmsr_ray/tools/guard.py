"""What stands between a tool call and a provider: concurrency, shared rate limit, breaker, retries, one deadline.

Promise: a call makes at most `attempts` requests and ends by its deadline; a provider that is down sees few requests
and is tried again by one probe per cooldown, for which the callers wait as long as their deadline and attempts allow.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from mmsr_ray.config import ProviderConfig
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.limits import Breaker
from mmsr_ray.tools.quota import Wallet
from mmsr_ray.types import ToolFailure

logger = logging.getLogger(__name__)
T = TypeVar("T")

_BREAKS = {ToolFailure.TIMEOUT, ToolFailure.UNAVAILABLE, ToolFailure.BAD_RESPONSE}  # a 4xx or a 429 says: alive
_DEFAULT_HOLD = 1.0  # seconds of silence after a 429 that names none
_backoff = wait_exponential_jitter(initial=0.1, max=4.0, jitter=0.2)


@dataclass(slots=True)
class Trace:
    """What one tool call has used. `deadline` is event-loop time; `attempts` the most that any one request needed."""

    deadline: float
    requests: int = 0
    attempts: int = 0
    cost_usd: float = 0.0


class Guard:
    """The limits of one service in this process."""

    def __init__(self, service: str, config: ProviderConfig, wallet: Wallet, breaker: Breaker, *, attempts: int, concurrency: int) -> None:
        self.service, self._config, self._wallet, self._breaker, self._attempts = service, config, wallet, breaker, attempts
        self._slots = asyncio.Semaphore(concurrency)
        self.counts: Counter[str] = Counter()
        self.cost_usd = 0.0

    async def call(self, trace: Trace, request: Callable[[], Awaitable[T]]) -> T:
        """The request's value. Raises ProviderError: the last attempt's."""

        def worth_it(error: BaseException) -> bool:
            return (
                isinstance(error, ProviderError)
                and error.retry
                and asyncio.get_running_loop().time() + (error.retry_after or 0) < trace.deadline
            )

        retrying = AsyncRetrying(stop=stop_after_attempt(self._attempts), wait=_pause, retry=retry_if_exception(worth_it), reraise=True)
        async for attempt in retrying:
            with attempt:
                trace.attempts = max(trace.attempts, attempt.retry_state.attempt_number)
                return await self._attempt(trace, request)
        raise AssertionError("tenacity ends in a value or an error")

    async def _attempt(self, trace: Trace, request: Callable[[], Awaitable[T]]) -> T:
        admitted = await self._admission(trace.deadline)  # outside the slots: a queue must not wait out one cooldown after another
        async with self._slots:
            if self._breaker.openings != admitted:
                raise ProviderError(ToolFailure.UNAVAILABLE, f"{self.service}: breaker opened while the call was queued")
            await self._wallet.take(trace.deadline)
            trace.requests += 1
            self.counts["requests"] += 1
            try:
                async with asyncio.timeout_at(trace.deadline):
                    value = await request()
            except TimeoutError:
                error = ProviderError(ToolFailure.TIMEOUT, f"{self.service}: the call's deadline passed", retry=False)
                self._failed(error)
                raise error from None
            except ProviderError as error:
                self._failed(error)
                if error.failure is ToolFailure.NO_RESULTS:
                    self._charge(trace)
                elif error.failure is ToolFailure.RATE_LIMITED:
                    await self._wallet.hold(_DEFAULT_HOLD if error.retry_after is None else error.retry_after)
                raise
            self._breaker.success()
            self._charge(trace)
            return value

    def _charge(self, trace: Trace) -> None:
        """Services charge for what they answered."""
        trace.cost_usd += self._config.price.per_call
        self.cost_usd += self._config.price.per_call

    def _failed(self, error: ProviderError) -> None:
        self.counts[str(error.failure)] += 1
        if error.failure not in _BREAKS:
            self._breaker.success()
        elif self._breaker.failure():
            self.counts["breaker_opened"] += 1
            logger.warning("%s: breaker opened after %s", self.service, error.detail)

    async def _admission(self, deadline: float) -> int:
        """Wait out an open breaker, through at most one probe of somebody else's; the breaker's openings when let through."""
        loop = asyncio.get_running_loop()
        seen = self._breaker.openings
        while (wait := self._breaker.admit()) > 0:
            if self._breaker.openings != seen:
                raise ProviderError(ToolFailure.UNAVAILABLE, f"{self.service}: breaker open, the probe failed")
            if loop.time() + wait >= deadline:
                raise ProviderError(ToolFailure.UNAVAILABLE, f"{self.service}: breaker open until after the deadline", retry=False)
            await asyncio.sleep(wait)
        return seen


def _pause(state: RetryCallState) -> float:
    """Exponential with jitter; after a 429 the shared hold does the waiting."""
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, ProviderError):
        if error.failure is ToolFailure.RATE_LIMITED:
            return 0.0
        return max(error.retry_after or 0.0, _backoff(state))
    return _backoff(state)
