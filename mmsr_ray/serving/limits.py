"""How much may be asked: requests per minute and money of each key, and requests of all keys at once. Pure.

Promise: nothing waits here. A request over a limit is refused at once, with the seconds after which another try may help.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmsr_ray.serving.errors import Refused
from mmsr_ray.serving.settings import ServingConfig

STOPPING = "the service stops: try again in a while"


class Quotas:
    """What each key may ask of the whole service."""

    def __init__(self, c: ServingConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._per_second = c.requests_per_minute / 60
        self._burst = max(1.0, c.requests_per_minute)
        self._budget = c.budget_usd
        self._left: dict[str, tuple[float, float]] = {}  # of a name: requests it may ask now, and when that was counted
        self._spent: dict[str, float] = defaultdict(float)

    def take(self, name: str) -> None:
        """One request of `name`. Raises Refused."""
        if self._budget and self._spent[name] >= self._budget:
            raise Refused("insufficient_quota", "the budget of this API key is spent")
        if not self._per_second:
            return
        now = self._clock()
        left, since = self._left.get(name, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_second)
        if left < 1:
            self._left[name] = (left, now)
            wait = max(1, math.ceil((1 - left) / self._per_second))
            raise Refused("rate_limit_exceeded", f"too many requests of this API key: try again in {wait} s", retry_after=wait)
        self._left[name] = (left - 1, now)

    def charge(self, name: str, cost_usd: float) -> None:
        self._spent[name] += cost_usd


class Room:
    """Of one ingress replica: requests that run or wait, of all keys."""

    def __init__(self, c: ServingConfig) -> None:
        self._most, self._retry = c.max_requests // c.ingress_replicas, c.retry_after_seconds
        self.open = 0
        self.closed = False  # the service stops

    @contextmanager
    def inside(self) -> Iterator[None]:
        """One of the requests that run or wait. Raises Refused where there are too many."""
        if self.closed:
            raise Refused("unavailable", STOPPING, retry_after=self._retry)
        if self.open >= self._most:
            raise Refused("overloaded", f"the service is busy: try again in {self._retry} s", retry_after=self._retry)
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
