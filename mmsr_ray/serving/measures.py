"""What requests came to, counted from their events: for Prometheus through Ray's metrics, which whatever scrapes Ray sees.

Promise: every request is counted once, however it ends: by its outcome, by the code of its failure, or as "left" where the client
went away; one that is refused before it is understood has the model and the workflow UNKNOWN. A tag never holds what a user, a model or the web wrote.
`Meter` is pure; `Exported` needs Ray and is thin.
"""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Callable
from dataclasses import dataclass, field

from mmsr_ray.metrics import catalogue as m
from mmsr_ray.metrics.exported import Gauges, counter, histogram
from mmsr_ray.serving.events import Event, Failed, Finished, Results, Started
from mmsr_ray.types import ToolKind

LEFT = "left"
UNKNOWN = "unknown"


@dataclass(slots=True)
class Account:
    """Of one request. Seconds since it came in; None for what did not happen."""

    model: str  # one of the served, or UNKNOWN
    workflow: str
    outcome: str = LEFT  # ok | policy_error | infra_error, a code of `errors.ERRORS`, or LEFT
    queued: float | None = None  # until it was begun
    first: float | None = None  # until the first event that says something: a reason, a search, an answer
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    searches: Counts[tuple[ToolKind, str]] = field(default_factory=Counts)  # by kind and "ok" or the failure


Take = Callable[[Account], None]  # where accounts go


class Meter:
    """Follows one request from when it is made; an `observers.Observer`."""

    def __init__(self, model: str, workflow: str, take: Take, clock: Callable[[], float] = time.monotonic) -> None:
        self._account, self._take, self._clock = Account(model, workflow), take, clock
        self._began = clock()
        self._closed = False

    def on(self, event: Event) -> None:
        account, now = self._account, self._clock() - self._began
        if isinstance(event, Started):
            account.queued = now
            return
        if account.first is None and not isinstance(event, Finished):
            account.first = now
        match event:
            case Results(kind=kind, failure=failure):
                account.searches[kind, failure or "ok"] += 1
            case Failed(code=code):
                account.outcome = code
            case Finished():
                if account.outcome == LEFT:  # a failure's code says more than the outcome
                    account.outcome = event.outcome
                account.prompt_tokens, account.completion_tokens = event.prompt_tokens, event.completion_tokens
                account.cost_usd = event.cost_usd

    def refuse(self, code: str) -> None:
        """It was not let in; `code` is one of `errors.ERRORS`."""
        self._account.outcome = code

    def close(self) -> None:
        """The request is over, in whatever way. More than once is once."""
        if self._closed:
            return
        self._closed = True
        self._account.seconds = self._clock() - self._began
        self._take(self._account)


class Exported:
    """To be made in an actor of Ray; takes accounts. The metrics stand in metrics.catalogue."""

    def __init__(self, room: int) -> None:
        """`room`: questions that this process takes at once."""
        self._requests, self._seconds = counter(m.SERVED), histogram(m.SERVED_SECONDS)
        self._queued, self._first = histogram(m.SERVED_QUEUE_SECONDS), histogram(m.SERVED_FIRST_SECONDS)
        self._tokens, self._searches, self._cost = histogram(m.SERVED_TOKENS), counter(m.SERVED_SEARCHES), counter(m.SERVED_COST)
        self._used = counter(m.SERVED_TOKENS_USED)
        self._gauges = Gauges({})
        self._gauges.set(m.SERVING_ROOM, room)
        self.inside(0)

    def inside(self, count: int) -> None:
        """So many questions run or wait now."""
        self._gauges.set(m.SERVING_OPEN, count)

    def __call__(self, account: Account) -> None:
        one = {"model": account.model, "workflow": account.workflow}
        ways = {**one, "outcome": account.outcome}
        self._requests.inc(1.0, ways)
        self._seconds.observe(account.seconds, ways)
        if account.queued is not None:
            self._queued.observe(account.queued, one)
        if account.first is not None:
            self._first.observe(account.first, one)
        for kind, tokens in (("prompt", account.prompt_tokens), ("completion", account.completion_tokens)):
            if tokens:
                self._tokens.observe(tokens, {**one, "kind": kind})
                self._used.inc(tokens, {**one, "kind": kind})
        for (kind, outcome), count in account.searches.items():
            self._searches.inc(float(count), {**one, "kind": str(kind), "outcome": outcome})
        if account.cost_usd:
            self._cost.inc(account.cost_usd, one)
