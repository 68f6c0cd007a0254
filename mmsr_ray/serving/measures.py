"""What requests came to, counted from their events: for Prometheus through Ray's metrics, which whatever scrapes Ray sees.

Promise: every request is counted once, however it ends: by its outcome, by the code of its failure, or as "left" where the client
went away. A tag never holds what a user, a model or the web wrote. `Meter` is pure; `Exported` needs Ray and is thin.
"""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Callable
from dataclasses import dataclass, field

from ray.util.metrics import Counter, Histogram

from mmsr_ray.serving.events import Event, Failed, Finished, Results, Started
from mmsr_ray.types import ToolKind

LEFT = "left"
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
_TOKENS = [10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0]


@dataclass(slots=True)
class Account:
    """Of one request. Seconds since it came in; None for what did not happen."""

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

    def __init__(self, workflow: str, take: Take, clock: Callable[[], float] = time.monotonic) -> None:
        self._account, self._take, self._clock = Account(workflow), take, clock
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
    """To be made in an actor of Ray; takes accounts. Names begin with mmsr_serving_."""

    def __init__(self) -> None:
        ways = ("workflow", "outcome")
        self._requests = Counter("mmsr_serving_requests", "Requests that ended", ways)
        self._seconds = Histogram("mmsr_serving_seconds", "Seconds of a request from its coming in to its end", _SECONDS, ways)
        self._queued = Histogram("mmsr_serving_queue_seconds", "Seconds until a request was begun", _SECONDS, ("workflow",))
        self._first = Histogram("mmsr_serving_first_event_seconds", "Seconds until there was something to see", _SECONDS, ("workflow",))
        self._tokens = Histogram("mmsr_serving_tokens", "Tokens of an episode", _TOKENS, ("workflow", "kind"))
        self._searches = Counter("mmsr_serving_searches", "Searches of episodes", ("workflow", "kind", "outcome"))
        self._cost = Counter("mmsr_serving_cost_usd", "What searches cost", ("workflow",))

    def __call__(self, account: Account) -> None:
        one = {"workflow": account.workflow}
        ways = {**one, "outcome": account.outcome}
        self._requests.inc(1.0, ways)
        self._seconds.observe(account.seconds, ways)
        if account.queued is not None:
            self._queued.observe(account.queued, one)
        if account.first is not None:
            self._first.observe(account.first, one)
        if account.prompt_tokens:
            self._tokens.observe(account.prompt_tokens, {**one, "kind": "prompt"})
            self._tokens.observe(account.completion_tokens, {**one, "kind": "completion"})
        for (kind, outcome), count in account.searches.items():
            self._searches.inc(float(count), {**one, "kind": str(kind), "outcome": outcome})
        if account.cost_usd:
            self._cost.inc(account.cost_usd, one)
