"""Token bucket, adaptive concurrency, circuit breaker: pure state machines over an injected clock, no waiting, no I/O.

Promise: all answer at once, with "go", a number or the seconds to wait; whoever asks does the waiting. So one bucket can
be shared by many processes through a single actor, and everything here is tested without sleeping.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]

_DUST = 1e-6  # of a token: what rounding may take from somebody who waited exactly as long as he was told
UNLIMITED = 1_000_000  # tokens of a lease where there is no rate limit


@dataclass(frozen=True, slots=True)
class Lease:
    """`tokens` requests may be made now; when 0, ask again in `wait` seconds."""

    tokens: int
    wait: float


class TokenBucket:
    """At most `burst + rate * t` tokens in any t seconds; `rate` 0 means no limit. `hold` (a Retry-After) stops all."""

    def __init__(self, rate: float, burst: int, clock: Clock = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, float(max(1, burst)), clock
        self._tokens, self._filled, self._held_until = self._burst, clock(), 0.0

    def lease(self, want: int) -> Lease:
        """Up to `want` tokens, as many as there are."""
        now = self._clock()
        if now < self._held_until:
            return Lease(0, self._held_until - now)
        if self._rate <= 0:
            return Lease(UNLIMITED, 0.0)
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1 - _DUST:
            return Lease(0, (1 - self._tokens) / self._rate)
        granted = min(max(1, want), int(self._tokens + _DUST))
        self._tokens -= granted
        return Lease(granted, 0.0)

    def hold(self, seconds: float) -> None:
        """The service asked for silence: no token before `seconds` have passed. A shorter hold never cuts a longer one."""
        self._held_until = max(self._held_until, self._clock() + seconds)


class Aimd:
    """How many requests may be in flight: additive increase, multiplicative decrease, between 1 and `ceiling`.

    Starts at `ceiling`. A round is as many outcomes as the limit. One that goes through adds 1; one halves the limit as
    soon as more than half of it is overload (429, timeout, 5xx). Outcomes of requests that began before the last
    decrease are ignored, so that a burst of failures counts once. The threshold is what keeps failures that have nothing
    to do with load from stopping the traffic: with a decrease for every failure, a service that fails at random in a
    third of all requests would be held at two in flight.
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = self.limit = max(1, ceiling)
        self.epoch = 0  # of a request: its value when the request began
        self.decreases = 0
        self._answered = self._overloaded = 0

    def success(self, epoch: int) -> None:
        """The service answered, whatever it said."""
        if epoch == self.epoch:
            self._answered += 1
            self._end_round()

    def overload(self, epoch: int) -> None:
        if epoch != self.epoch:
            return
        self._overloaded += 1
        if 2 * self._overloaded <= self.limit:
            return self._end_round()
        if self.limit > 1:
            self.limit //= 2
            self.decreases += 1
        self.epoch += 1
        self._answered = self._overloaded = 0

    def _end_round(self) -> None:
        if self._answered + self._overloaded >= self.limit:
            self.limit = min(self._ceiling, self.limit + 1)
            self._answered = self._overloaded = 0


class Breaker:
    """Opens after `failures` failures in a row, for `cooldown` seconds; then one probe decides.

    A probe that never reports (its task was cancelled) is forgotten after another cooldown. `failures` 0 never opens.
    """

    def __init__(self, failures: int, cooldown: float, clock: Clock = time.monotonic) -> None:
        self._limit, self._cooldown, self._clock = failures, cooldown, clock
        self._failed = 0
        self._open_until: float | None = None  # None: closed
        self._probe_until = 0.0
        self.openings = 0  # how often it opened, re-openings by a failed probe included

    @property
    def is_open(self) -> bool:
        return self._open_until is not None

    @property
    def probing(self) -> bool:
        """A probe is under way: its report may come at any moment."""
        return self._open_until is not None and self._open_until <= self._clock() < self._probe_until

    def admit(self) -> float:
        """0.0: go. Otherwise the seconds after which asking again makes sense, or sooner when the probe has reported."""
        if self._open_until is None:
            return 0.0
        now = self._clock()
        if now < self._open_until:
            return self._open_until - now
        if now < self._probe_until:
            return self._probe_until - now
        self._probe_until = now + self._cooldown
        return 0.0

    def success(self) -> None:
        self._failed, self._open_until, self._probe_until = 0, None, 0.0

    def failure(self) -> bool:
        """Count a failure; True when this one opened the breaker."""
        now = self._clock()
        if self._open_until is not None:
            if now < self._open_until:
                return False  # a straggler from before the opening says nothing new
            return self._open(now)
        self._failed += 1
        return 0 < self._limit <= self._failed and self._open(now)

    def _open(self, now: float) -> bool:
        self._failed, self._open_until, self._probe_until = 0, now + self._cooldown, 0.0
        self.openings += 1
        return True
