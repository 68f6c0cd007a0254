"""The tools as queues: services with their limits, tool actors with their event loops, the two searches. Pure.

The order is the tools' own (mmsr_ray/tools/guard.py): a slot of the actor's share of the concurrency, then a token of the job's rate
limit, then the request, tried again with backoff until its attempts or the call's deadline are used up. What adapts to an unwell service
(shrinking concurrency, breaker, Retry-After) is left out: a plan is about services that are well, and says how much they fail.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import simpy

from mmsr_ray.config import Config, ProviderConfig
from mmsr_ray.planning.engine import Line
from mmsr_ray.planning.settings import SERVICES, ServiceCosts, service_costs

Process = Generator[simpy.Event, Any, bool]  # its value: whether it went well
BACKOFF_SECONDS, BACKOFF_MOST, JITTER = 0.1, 4.0, 0.2  # as in tools/guard.py
LEASES_PER_SECOND = 10.0  # a lease is a tenth of a second's worth of the rate (tools/quota.py)


class Rate:
    """A token bucket that hands out its tokens in order of asking: the time at which each comes is known at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst, self._full = rate, max(1, burst), -math.inf  # when the bucket would be full again

    def take(self, now: float, deadline: float) -> float | None:
        """Seconds until the caller's token comes; None when it would come after the deadline, and then none is taken."""
        if self._rate <= 0:
            return 0.0
        at = max(now, self._full - (self._burst - 1) / self._rate)
        if at > deadline:
            return None
        self._full = max(self._full, at) + 1 / self._rate
        return at - now


class Slots:
    """How many requests may be in flight, first come, first served."""

    def __init__(self, most: int) -> None:
        self._most, self._taken = most, 0
        self._queue: deque[simpy.Event] = deque()

    def take(self, env: simpy.Environment) -> simpy.Event | None:
        """None: it is the caller's. Else an event that succeeds when it is."""
        if self._taken < self._most:
            self._taken += 1
            return None
        ticket = env.event()
        self._queue.append(ticket)
        return ticket

    def leave(self, ticket: simpy.Event) -> None:
        self._queue.remove(ticket)

    def give_back(self) -> None:
        if self._queue:
            self._queue.popleft().succeed()
        else:
            self._taken -= 1


@dataclass
class Counts:
    """What a service did."""

    requests: int = 0
    failures: int = 0  # of requests, tried again or not
    too_late: int = 0  # calls that stood in the queue until their deadline
    queued: float = 0.0  # seconds in front of slots and rate limit
    serving: float = 0.0  # seconds of requests
    usd: float = 0.0


@dataclass
class Service:
    """One service as all actors of the job see it."""

    name: str
    limits: ProviderConfig | None  # None: thumbnails lie on many hosts, no limit holds for them all
    costs: ServiceCosts
    actors: int
    attempts: int
    rate: Rate = field(init=False)
    slots: list[Slots] = field(init=False)
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        limits = self.limits
        self.rate = Rate(limits.rate_per_second if limits else 0.0, limits.burst if limits else 1)
        most = max(1, limits.concurrency // self.actors) if limits else 1_000_000
        self.slots = [Slots(most) for _ in range(self.actors)]

    @property
    def timeout(self) -> float:
        return self.limits.timeout_seconds if self.limits else math.inf

    def draw(self, random: Random) -> float:
        """Seconds of one request."""
        c = self.costs
        return min(c.most_seconds, c.median_seconds * (random.lognormvariate(0.0, c.tail) if c.tail else 1.0))

    def charge(self) -> None:
        if self.limits is not None:
            price = self.limits.price
            tokens = price.per_million_input_tokens * self.costs.input_tokens + price.per_million_output_tokens * self.costs.output_tokens
            self.counts.usd += price.per_call + tokens / 1e6


class ToolPlane:
    """Both searches of a job. Chance comes from the caller's `random`: what a rollout meets does not depend on the others' order."""

    def __init__(self, env: simpy.Environment, config: Config) -> None:
        tools, self._env = config.tools, env
        self._deadline, self._topk, self._actor = tools.deadline_seconds, config.agent.topk, config.plan.tool_actor
        limits: dict[str, ProviderConfig | None] = {
            "image_host": tools.image_host,
            "image_search": tools.image_search,
            "thumbnails": None,
            "text_search": tools.text_search,
            "reader": tools.reader,
            "summariser": tools.summariser,
        }
        self._uploads = tools.image_host.kind != "none"
        self.services = {
            name: Service(name, limits[name], service_costs(config.plan, name), tools.actors, tools.attempts) for name in SERVICES
        }
        self.actors = [Line(env) for _ in range(tools.actors)]
        self.calls = 0
        self.call_seconds = 0.0

    # ------------------------------------------------------------------------------------------------ searches

    def image(self, random: Random, looked_up: dict[str, simpy.Event]) -> Process:
        """An image search; `looked_up` is the group's, whose rollouts share one picture."""
        actor, deadline, began = self._begin(random)
        yield self._env.timeout(self.actors[actor].wait(self._actor.call_seconds))
        if (known := looked_up.get("picture")) is not None:  # the others of the group join it, or find it in the cache
            ok = bool(known.value) if known.triggered else (yield known)
        else:
            looked_up["picture"] = found = self._env.event()
            ok = yield from self._look_up(random, actor, deadline)
            found.succeed(ok)
            if not ok:
                del looked_up["picture"]
        return self._end(began, ok)

    def _look_up(self, random: Random, actor: int, deadline: float) -> Process:
        if not self._known(random, "image_search"):
            if self._uploads and not (yield from self._request(random, "image_host", actor, deadline)):
                return False
            if not (yield from self._request(random, "image_search", actor, deadline)):
                return False
        yield self._env.all_of([self._env.process(self._hit(random, ("thumbnails",), actor, deadline)) for _ in range(self._topk)])
        return True

    def text(self, random: Random, found: set[int], turn: int) -> Process:
        """The text search of a rollout's turn; `found` has the turns whose search a cache knows, because the rollout is run anew."""
        actor, deadline, began = self._begin(random)
        yield self._env.timeout(self.actors[actor].wait(self._actor.call_seconds))
        ok = turn in found or self._known(random, "text_search") or (yield from self._request(random, "text_search", actor, deadline))
        if ok:
            found.add(turn)
            pages = [self._env.process(self._hit(random, ("reader", "summariser"), actor, deadline)) for _ in range(self._topk)]
            ok = any((yield self._env.all_of(pages)).values())
        return self._end(began, ok)

    def _begin(self, random: Random) -> tuple[int, float, float]:
        now = self._env.now
        return random.randrange(len(self.actors)), now + self._deadline, now

    def _end(self, began: float, ok: bool) -> bool:
        self.calls += 1
        self.call_seconds += self._env.now - began
        return ok

    def _hit(self, random: Random, chain: tuple[str, ...], actor: int, deadline: float) -> Process:
        """One hit; the next in the list takes the place of one that fails."""
        for _ in range(2):
            for name in chain:
                if not (self._known(random, name) or (yield from self._request(random, name, actor, deadline))):
                    break
            else:
                return True
            if self._env.now >= deadline:
                return False
        return False

    def _known(self, random: Random, name: str) -> bool:
        return random.random() < self.services[name].costs.known

    # ------------------------------------------------------------------------------------------------ one request

    def _request(self, random: Random, name: str, actor: int, deadline: float) -> Process:
        service = self.services[name]
        for attempt in range(1, service.attempts + 1):
            ok, again = yield from self._attempt(random, service, actor, deadline)
            if ok or not again or attempt == service.attempts:
                return ok
            pause = min(BACKOFF_MOST, BACKOFF_SECONDS * 2 ** (attempt - 1)) + random.uniform(0.0, JITTER)
            if self._env.now + pause >= deadline:
                return False
            yield self._env.timeout(pause)
        return False

    def _attempt(self, random: Random, service: Service, actor: int, deadline: float) -> Generator[simpy.Event, Any, tuple[bool, bool]]:
        """(whether it went well, whether another attempt makes sense)."""
        env, counts, slots = self._env, service.counts, service.slots[actor]
        came = env.now
        if (ticket := slots.take(env)) is not None:
            late = env.timeout(max(0.0, deadline - came))
            yield ticket | late
            if not ticket.triggered:
                slots.leave(ticket)
                counts.too_late += 1
                counts.queued += env.now - came
                return False, False
        wait = service.rate.take(env.now, deadline)
        if wait is None:
            yield env.timeout(max(0.0, deadline - env.now))
            counts.too_late += 1
        elif wait > 0:
            yield env.timeout(wait)
        counts.queued += env.now - came
        if wait is None:
            slots.give_back()
            return False, False
        seconds = service.draw(random)
        failed = seconds > service.timeout or random.random() < service.costs.failure_rate
        own = self.actors[actor].wait(self._actor.request_seconds)
        seconds = min(seconds, service.timeout)
        yield env.timeout(own + seconds)
        slots.give_back()
        counts.requests += 1
        counts.serving += seconds
        if failed or env.now > deadline:
            counts.failures += 1
            return False, env.now <= deadline
        service.charge()
        return True, False
