"""A run of GRPO with searches, as a discrete-event simulation. Pure.

Promise: the rules are the run's own. Prompts are admitted, dispatched, taken into batches and bounded in age by the very `Ledger` that
trains (mmsr_ray/algorithms/ledger.py); the driver blocks where the real one does (learning without staleness, publishing, evaluating);
weights come to the runners as `algorithms/turns.py` brings them. Chance belongs to the rollout: what one does and meets follows from
`run.seed` and its number, so runs of other sizes are compared on the same rollouts.

Left out: deaths, dynamic sampling, the judge, deadlines of episodes and groups, several pictures per question.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import simpy

from mmsr_ray.algorithms.ledger import Entry, Ledger
from mmsr_ray.config import Config
from mmsr_ray.learner.objective import longest_answer, resolve
from mmsr_ray.planning.engine import Engine, Line
from mmsr_ray.planning.services import ToolPlane
from mmsr_ray.planning.settings import LearnerCosts, SyncCosts
from mmsr_ray.rollout.update import UpdateMode

Events = Generator[simpy.Event, Any, None]
PUMP_SECONDS = 0.02  # so late the driver notices that the learner is done (algorithms/grpo.py)
SEEDS = 1 << 24  # groups of a run that have chances of their own
RETRY_SECONDS = 0.2  # before the second attempt at a rollout (rollout/env_runner.py)


class PlanError(ValueError):
    """What is asked cannot be; the message says why and what to change."""


@dataclass(frozen=True, slots=True)
class Ticket:
    number: int
    epoch: int = 0

    @property
    def uid(self) -> str:
        return f"q{self.number}"


@dataclass(slots=True)
class GroupResult:
    tokens: int  # that the learner computes
    sampled: float
    survivors: int


@dataclass(slots=True)
class Step:
    """One training step: seconds as in a run's record, and what was in it."""

    generate: float = 0.0
    tools: float = 0.0
    idle: float = 0.0
    learn: float = 0.0
    sync: float = 0.0
    evaluation: float = 0.0
    total: float = 0.0
    tokens: int = 0
    sampled: float = 0.0
    trajectories: int = 0
    staleness: int = 0  # of the oldest group


@dataclass
class Clock:
    """Seconds of one runner in each state: generating while a turn is with the engine, else searching while a rollout waits for tools."""

    env: simpy.Environment
    generating: int = 0
    searching: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"generate": 0.0, "tools": 0.0, "idle": 0.0})
    _since: float = 0.0

    def change(self, generating: int = 0, searching: int = 0) -> None:
        self.read()
        self.generating += generating
        self.searching += searching

    def read(self) -> dict[str, float]:
        state = "generate" if self.generating else "tools" if self.searching else "idle"
        self.seconds[state] += self.env.now - self._since
        self._since = self.env.now
        return dict(self.seconds)


class Runner:
    """Rollouts on one engine."""

    def __init__(self, env: simpy.Environment, config: Config, tools: ToolPlane) -> None:
        self._env, self._c, self._tools = env, config, tools
        self.engine = Engine(env, config.plan.engine, config.rollout.max_num_seqs)
        self.clock = Clock(env)
        self.groups = 0  # in flight
        self.updates = 0  # of the weights; each empties the caches
        policy = config.plan.policy
        self._courses = [name.split(",") for name in policy.courses]
        self._shares = list(policy.courses.values())

    def group(self, number: int, size: int) -> Generator[simpy.Event, Any, GroupResult]:
        looked_up: dict[str, simpy.Event] = {}
        seeds = range(first := size * (number + self._c.run.seed * SEEDS), first + size)
        rollouts = [self._env.process(self._rollout(Random(seed), looked_up, first=seed == first)) for seed in seeds]
        rows = [row for row in (yield self._env.all_of(rollouts)).values() if row is not None]
        return GroupResult(sum(tokens for tokens, _ in rows), sum(sampled for _, sampled in rows), len(rows))

    def _rollout(
        self, random: Random, looked_up: dict[str, simpy.Event], *, first: bool
    ) -> Generator[simpy.Event, Any, tuple[int, float] | None]:
        """Tokens in all and tokens sampled; None when its tools failed for good."""
        (course,) = random.choices(self._courses, self._shares)
        found: set[int] = set()
        for attempt in range(self._c.rollout.infra_retries + 1):
            if attempt:
                yield self._env.timeout(RETRY_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            row = yield from self._episode(random, course, looked_up, found, first=first and attempt == 0)
            if row is not None:
                return row
        return None

    def _episode(
        self, random: Random, course: Sequence[str], looked_up: dict[str, simpy.Event], found: set[int], *, first: bool
    ) -> Generator[simpy.Event, Any, tuple[int, float] | None]:
        policy = self._c.plan.policy
        context, cached, updates, sampled = policy.prompt_tokens, 0 if first else policy.prompt_tokens, self.updates, 0.0
        for turn, action in enumerate(course):
            if updates != self.updates:  # new weights came while it waited: nothing of it is in the cache
                cached, updates = 0, self.updates
            tokens = self._turn_tokens(random)
            self.clock.change(generating=1)
            yield self.engine.turn(tokens, context - cached, round(context + tokens))
            self.clock.change(generating=-1)
            sampled += tokens
            context = cached = round(context + tokens)
            if action == "answer":
                break
            self.clock.change(searching=1)
            ok = yield from (self._tools.image(random, looked_up) if action == "image" else self._tools.text(random, found, turn))
            self.clock.change(searching=-1)
            if not ok:
                return None
            context += policy.image_tokens if action == "image" else policy.text_tokens
        return context, sampled

    def _turn_tokens(self, random: Random) -> float:
        policy, most = self._c.plan.policy, self._c.agent.max_turn_tokens
        spread = policy.turn_spread
        drawn = policy.turn_tokens * (random.lognormvariate(-spread * spread / 2, spread) if spread else 1.0)
        return min(float(most), max(1.0, drawn))

    def update(self, seconds: float) -> Events:
        """New weights, for which the engine stands still so long."""
        if self._c.rollout.update == UpdateMode.WAIT:
            yield self.engine.drain()
        self.engine.freeze()
        yield self._env.timeout(seconds)
        self.updates += 1
        self.engine.thaw()


class Pipeline:
    """The driver. `play` runs `warm_up + steps` training steps; `steps` holds those that count."""

    def __init__(self, config: Config) -> None:
        self.c, self.env = config, simpy.Environment()
        self.tools = ToolPlane(self.env, config)
        self.runners = [Runner(self.env, config, self.tools) for _ in range(config.rollout.num_runners)]
        self.driver = Line(self.env)
        plan, grpo = config.plan, config.grpo
        # one batch more than is played: the pipeline is full to the end, as it is in the middle of a run
        self.ledger = Ledger(grpo.groups_per_step, grpo.staleness, grpo.loss_limit, plan.warm_up + plan.steps + 1 + grpo.staleness)
        self.lost = 0  # rollouts whose tools failed for good
        self.steps: list[Step] = []
        self.began = 0.0  # when the first step that counts began
        self._numbers = 0
        self._queued = self._flying = self._ready = 0
        self._feeding = False
        self._fed_at = -math.inf  # when the feeder was asked last: meanwhile it loads ahead
        self._news = self.env.event()

    def play(self) -> list[Step]:
        self.env.run(self.env.process(self._train()))
        return self.steps

    # ------------------------------------------------------------------------------------------------ one step

    def _train(self) -> Events:
        plan = self.c.plan
        for number in range(plan.warm_up + plan.steps):
            if number == plan.warm_up:
                self._forget()
            step = Step()
            began, before = self.env.now, self._readings()
            batch = yield from self._collect()
            collected, after = self.env.now, self._readings()
            yield from self._learn(batch)
            learned = self.env.now
            yield from self._publish()
            step.learn, step.sync, step.total = learned - collected, self.env.now - learned, self.env.now - began
            step.generate, step.tools, step.idle = (_mean(after[p] - before[p] for p in parts) for parts in self._parts())
            results: list[GroupResult] = [entry.result for entry in batch]
            step.tokens, step.sampled = sum(r.tokens for r in results), sum(r.sampled for r in results)
            step.trajectories = sum(r.survivors for r in results)
            step.staleness = max(self.ledger.version - entry.version for entry in batch)
            self.ledger.trained(batch)
            self._ready -= len(batch)
            yield self.env.timeout(plan.driver.step_seconds)
            yield from self._evaluate(step)
            step.total = self.env.now - began - step.evaluation
            if number >= plan.warm_up:
                self.steps.append(step)

    def _readings(self) -> dict[tuple[int, str], float]:
        return {(i, state): s for i, runner in enumerate(self.runners) for state, s in runner.clock.read().items()}

    def _parts(self) -> Iterator[list[tuple[int, str]]]:
        for state in ("generate", "tools", "idle"):
            yield [(i, state) for i in range(len(self.runners))]

    def _forget(self) -> None:
        """What was counted before the steps that count."""
        self.began = self.env.now
        for service in self.tools.services.values():
            service.counts = type(service.counts)()
        self.tools.calls, self.tools.call_seconds, self.lost = 0, 0.0, 0
        for line in (*self.tools.actors, self.driver):
            line.busy = 0.0
        for runner in self.runners:
            runner.engine.busy = runner.engine.sequence_seconds = runner.engine.sampled = 0.0

    # ------------------------------------------------------------------------------------------------ sampling

    def _collect(self) -> Generator[simpy.Event, Any, list[Entry]]:
        """Raises PlanError where a run would give up."""
        limit = self.c.grpo.step_seconds
        deadline = self.env.now + limit
        self.env.timeout(limit).callbacks.append(lambda _: self._tell())  # type: ignore[union-attr]
        while True:
            self._pump()
            if self._ready >= self.ledger.groups_per_step and (batch := self.ledger.take_batch()) is not None:
                return batch
            if self.env.now >= deadline:
                raise PlanError(
                    f"no full batch within grpo.step_seconds={limit:g}: {self._ready} of {self.ledger.groups_per_step} groups were ready, "
                    f"{self._flying} in flight, {self.lost} rollouts lost to tools; {self._slowest()}"
                )
            yield self._next()

    def _slowest(self) -> str:
        """Where rollouts wait, for somebody whose steps never end."""
        late = max(self.tools.services.values(), key=lambda s: s.counts.too_late)
        if late.counts.too_late:
            return (
                f"{late.counts.too_late} calls stood before tools.{late.name} until tools.deadline_seconds: raise its rate or concurrency"
            )
        return "more runners (rollout.num_runners), fewer groups (grpo.groups_per_step) or more time are needed"

    def _next(self) -> simpy.Event:
        """Succeeds when there is something for the driver to do."""
        self._news = self.env.event()
        return self._news

    def _tell(self) -> None:
        if not self._news.triggered:
            self._news.succeed()

    def _pump(self) -> None:
        """Ask for prompts, send out those that are here."""
        if not self._feeding and (room := self.ledger.room) > 0:
            self._feeding = True
            self.env.process(self._feed(room))
        if self._queued:
            self._dispatch()

    def _feed(self, room: int) -> Events:
        """The feeder's answer: what it has loaded ahead is there at once; one request is open at a time."""
        each, ahead = self.c.plan.driver.prompt_seconds, self.c.data.prefetch_samples
        loaded = min(ahead, math.floor((self.env.now - self._fed_at) / each) if self._fed_at > -math.inf else 0) if each else room
        count = max(1, min(room, loaded))
        yield self.env.timeout(0.0 if loaded else each)
        self._fed_at = max(self._fed_at, self.env.now - (loaded - count) * each) if each else self.env.now
        self.ledger.admit([Ticket(self._numbers + i) for i in range(count)])
        self._numbers += count
        self._queued += count
        self._feeding = False
        self._tell()

    def _dispatch(self) -> None:
        most = self.c.rollout.max_inflight_groups
        for entry in self.ledger.queued():
            runner = min(self.runners, key=lambda r: r.groups)
            if runner.groups >= most:
                return
            self.ledger.dispatch(entry)
            runner.groups += 1
            self._queued -= 1
            self._flying += 1
            self.env.process(self._fly(entry, runner))

    def _fly(self, entry: Entry, runner: Runner) -> Events:
        costs = self.c.plan.driver
        yield self.env.timeout(self.driver.wait((costs.group_seconds + costs.held_seconds * self._flying) / 2))
        result: GroupResult = yield self.env.process(runner.group(entry.ticket.number, self.c.grpo.group_size))
        yield self.env.timeout(self.driver.wait((costs.group_seconds + costs.held_seconds * self._flying) / 2))
        runner.groups -= 1
        self._flying -= 1
        self.lost += self.c.grpo.group_size - result.survivors
        if result.survivors >= self.c.rollout.min_survivors:
            self.ledger.complete(entry, result)
            self._ready += 1
        elif self.ledger.lose(entry):
            self._queued += 1
        self._tell()

    # ------------------------------------------------------------------------------------------------ learning, weights, evaluation

    def _learn(self, batch: Sequence[Entry]) -> Events:
        plan, c = self.c.plan, self.c
        if c.learner.colocated:
            yield self.env.timeout(plan.sync.turn_seconds)
        seconds = learning_seconds(sum(entry.result.tokens for entry in batch), c)
        if c.grpo.staleness == 0:
            yield self.env.timeout(seconds)
            return
        done = self.env.timeout(seconds * plan.learner.contention + PUMP_SECONDS / 2)
        while not done.processed:
            self._pump()
            yield done | self._next()

    def _publish(self) -> Events:
        """On-policy runners load along with the publish; others stand still while they load a version that is whole."""
        c, costs = self.c, self.c.plan.sync
        along = c.grpo.staleness == 0 and not c.learner.colocated
        published = costs.bytes / costs.publish_per_second
        carried = carried_seconds(costs, len(self.runners))
        still = max(published, carried) if along else carried
        if not along:
            yield self.env.timeout(published)
        yield self.env.timeout(self.driver.wait(costs.call_seconds * len(self.runners)))
        yield self.env.all_of([self.env.process(runner.update(still + costs.pause_seconds)) for runner in self.runners])
        if c.learner.colocated:
            yield self.env.timeout(costs.turn_seconds)

    def _evaluate(self, step: Step) -> Events:
        """The held-out questions on the runners that train; the driver waits for them."""
        e, began = self.c.evaluation, self.env.now
        number = self.ledger.version
        if e.every_steps and number % e.every_steps == 0 and e.questions_during:
            questions = [
                self.runners[i % len(self.runners)].group(SEEDS - 1 - i, 1) for i in range(e.questions_during * len(e.workflows_during))
            ]
            yield self.env.all_of([self.env.process(question) for question in questions])
        step.evaluation = self.env.now - began


def learning_seconds(tokens: int, config: Config) -> float:
    """Of one update on a batch of so many tokens."""
    costs: LearnerCosts = config.plan.learner
    grpo = config.grpo
    passes = 1 + costs.scoring * ((kl_coef(config) > 0) + (grpo.minibatches - 1) / grpo.minibatches)
    return (
        costs.fixed_seconds
        + tokens * costs.token_seconds * passes / (config.learner.world_size * costs.balance)
        + grpo.minibatches * costs.optimiser_seconds
    )


def kl_coef(config: Config) -> float:
    return resolve(config.grpo.loss, longest_answer(config.agent)).kl_coef


def carried_seconds(costs: SyncCosts, runners: int) -> float:
    """From the object store of the publisher's node into the engines: over the network to the other nodes, and out of shared memory."""
    others = max(0, math.ceil(runners / costs.runners_per_node) - 1)
    network = others * costs.bytes / (costs.network_per_second * min(costs.sharing, others or 1))
    return max(network, costs.bytes / costs.load_per_second)


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
