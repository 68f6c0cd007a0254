"""One rate limit per service for the whole job: leases of tokens from one place, spent locally.

Promise: however many actors call a service, together they stay within its bucket and all fall silent after a
Retry-After. Tokens that are not spent within `LEASE_SECONDS` lapse: the limit may be under-used, never over-used by
more than the leases that are out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Protocol

from mmsr_ray.config import ProviderConfig
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.limits import Clock, Lease, TokenBucket
from mmsr_ray.types import ToolFailure

LEASE_SECONDS = 0.5


class Quota(Protocol):
    """Where leases come from: this process (`LocalQuota`) or an actor (tools.actor)."""

    async def lease(self, service: str, want: int) -> Lease: ...

    async def hold(self, service: str, seconds: float) -> None: ...


class Buckets:
    """The buckets of all services, by name. Pure but for the clock."""

    def __init__(self, services: Mapping[str, ProviderConfig], clock: Clock = time.monotonic) -> None:
        self._buckets = {name: TokenBucket(service.rate_per_second, service.burst, clock) for name, service in services.items()}

    def lease(self, service: str, want: int) -> Lease:
        return self._buckets[service].lease(want)

    def hold(self, service: str, seconds: float) -> None:
        self._buckets[service].hold(seconds)


class LocalQuota:
    """Quota of a single process."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets

    async def lease(self, service: str, want: int) -> Lease:
        return self._buckets.lease(service, want)

    async def hold(self, service: str, seconds: float) -> None:
        self._buckets.hold(service, seconds)


class Tokens(Protocol):
    """The right to send requests to one service. `deadline` is event-loop time."""

    async def take(self, deadline: float) -> None:
        """Wait for one token. Raises RATE_LIMITED when none can come before `deadline`."""
        ...

    async def hold(self, seconds: float, deadline: float) -> None:
        """The service asked for silence."""
        ...


class Wallet:
    """The tokens of one service in this process. First come, first served."""

    def __init__(self, quota: Quota, service: str, rate: float) -> None:
        self._quota, self._service = quota, service
        self._want = max(1, min(64, int(rate * 0.1)))  # a tenth of a second's worth: few calls, little to lose
        self._tokens, self._lapse = 0, 0.0
        self._turn = asyncio.Lock()

    async def take(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        if self._tokens > 0 and loop.time() <= self._lapse and not self._turn.locked():
            self._tokens -= 1
            return
        try:
            async with asyncio.timeout_at(deadline), self._turn:
                while self._tokens < 1 or loop.time() > self._lapse:
                    lease = await self._quota.lease(self._service, self._want)
                    self._tokens, self._lapse = lease.tokens, loop.time() + LEASE_SECONDS
                    if lease.tokens < 1:
                        if loop.time() + lease.wait > deadline:
                            raise TimeoutError
                        await asyncio.sleep(lease.wait)
                self._tokens -= 1
        except TimeoutError:
            raise ProviderError(
                ToolFailure.RATE_LIMITED, f"{self._service}: no free slot in the rate limit before the deadline", retry=False
            ) from None

    async def hold(self, seconds: float, deadline: float) -> None:
        """Pass the word on to everybody and drop the tokens at hand."""
        self._tokens = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._quota.hold(self._service, seconds)


class Unlimited:
    """Tokens for what is no single service: one host of many that asks for silence does not speak for the others."""

    async def take(self, deadline: float) -> None:
        return

    async def hold(self, seconds: float, deadline: float) -> None:
        return
