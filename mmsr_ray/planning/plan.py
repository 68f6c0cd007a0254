"""From a config to a plan: what a step takes, how busy each part is, what it costs, which part holds the others up. Pure.

Promise: the bottleneck is found by trying. Each part is made twice as good in turn and the run simulated anew; the part whose doubling
saves most is named, with what it saves. A part that is busy all the time and saves nothing is not one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmsr_ray.config import Config, ProviderConfig
from mmsr_ray.planning.pipeline import Pipeline, PlanError, Step
from mmsr_ray.planning.services import LEASES_PER_SECOND
from mmsr_ray.planning.settings import SERVICES, service_costs

PARTS = ("generate", "tools", "idle", "learn", "sync")
LOST = 0.01  # share of rollouts that tools may cost before it is said


@dataclass(frozen=True, slots=True)
class ServiceLoad:
    """One service in the steps that count."""

    name: str
    requests: float  # per step
    per_second: float
    limit: float  # requests a second that are allowed; 0: no limit
    use: float  # of the rate limit, or of the concurrency where that is nearer
    queued: float  # mean seconds of a request before the limits
    failures: float  # share of requests
    too_late: float  # per step
    usd: float  # per step


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The mean step with one part twice as good."""

    part: str
    seconds: float
    saved: float  # share of the step


@dataclass(frozen=True, slots=True)
class Plan:
    seconds: dict[str, float]  # of a step by part, total and evaluation; means
    tokens_per_second: float  # sampled
    sampled_tokens: float  # per step
    learner_tokens: float
    staleness: int
    engines_busy: float  # shares of the time
    batch: float  # mean sequences in an engine while it is busy
    learner_busy: float
    tool_actors_busy: float  # the busiest
    driver_busy: float
    call_seconds: float  # mean of a tool call, its queues included
    calls: float  # per step
    services: list[ServiceLoad]
    lost: float  # share of rollouts
    gpus: float
    usd_tools: float  # per step
    usd_gpus: float
    steps: int  # of the run
    hours: float  # of the run
    quota_calls: float  # a second, of tool actors that wait for the rate limit
    remarks: list[str]
    what_if: list[WhatIf]

    @property
    def bottleneck(self) -> str:
        """The part whose doubling saves most; "" where it was not asked for or nothing saves a twentieth."""
        best = max(self.what_if, key=lambda w: w.saved, default=None)
        return best.part if best and best.saved >= 0.05 else ""


def plan(config: Config, *, what_if: bool = True) -> Plan:
    """Raises PlanError for a run that cannot be, or that would give up."""
    check(config)
    pipeline = Pipeline(config)
    steps = pipeline.play()
    total = statistics.mean(s.total for s in steps)
    found = _plan(config, pipeline, steps)
    return replace(found, what_if=doubled(config, total)) if what_if else found


def step_seconds(config: Config) -> float:
    """Mean of a step. Raises PlanError."""
    check(config)
    return statistics.mean(step.total for step in Pipeline(config).play())


# ---------------------------------------------------------------------------------------------------- what cannot be


def check(c: Config) -> None:
    """Raises PlanError, before anything is simulated."""
    policy, agent = c.plan.policy, c.agent
    if c.rollout.num_runners < 1:
        raise PlanError("rollout.num_runners=0: nobody rolls out; set at least 1, or plan.target_seconds to find out how many it takes")
    if c.learner.world_size < 1:
        raise PlanError("learner.world_size must be at least 1: nobody learns")
    added = {"image": policy.image_tokens, "text": policy.text_tokens, "answer": 0}
    for course, share in policy.courses.items():
        actions = course.split(",")
        if share > 0 and len(actions) > agent.max_turns:
            raise PlanError(
                f"plan.policy.courses has {course!r}, longer than agent.max_turns={agent.max_turns}: raise it or drop the course"
            )
        context = policy.prompt_tokens + sum(added[action] + policy.turn_tokens for action in actions)
        if share > 0 and context > agent.max_total_tokens:
            raise PlanError(
                f"a rollout of the course {course!r} takes {context:.0f} tokens in the mean, above agent.max_total_tokens="
                f"{agent.max_total_tokens}: raise it, or lower what plan.policy says of prompts, results and turns"
            )
        if share > 0 and 0 < c.plan.engine.kv_tokens < context:
            raise PlanError(f"plan.engine.kv_tokens={c.plan.engine.kv_tokens} has no room for one rollout of {context:.0f} tokens")
    _check_limits(c)
    if c.grpo.groups_per_step * (c.grpo.staleness + 1) < c.rollout.num_runners:
        raise PlanError(
            f"{c.rollout.num_runners} runners share at most {c.grpo.groups_per_step * (c.grpo.staleness + 1)} groups at a time, and a group "
            "stays on one runner: lower rollout.num_runners, or raise grpo.groups_per_step"
        )


def _check_limits(c: Config) -> None:
    """A rate limit that does not let a step's searches through before the step's own deadline."""
    rollouts = c.grpo.groups_per_step * c.grpo.group_size
    texts = rollouts * sum(share * course.split(",").count("text") for course, share in c.plan.policy.courses.items())
    wanted = {
        "text_search": texts * (1 - c.plan.text_search.known),
        "reader": texts * c.agent.topk * (1 - c.plan.reader.known),
        "summariser": texts * c.agent.topk * (1 - c.plan.summariser.known),
    }
    limits = {"text_search": c.tools.text_search, "reader": c.tools.reader, "summariser": c.tools.summariser}
    for name, limit in limits.items():
        least = wanted[name] / limit.rate_per_second if limit.rate_per_second else 0.0
        if least > c.grpo.step_seconds:
            raise PlanError(
                f"a step asks tools.{name} {wanted[name]:.0f} times, which takes {least:.0f} s at rate_per_second={limit.rate_per_second:g} "
                f"and is longer than grpo.step_seconds={c.grpo.step_seconds:g}: raise the rate (a larger contract), or ask less"
            )


# ---------------------------------------------------------------------------------------------------- what came out


def _plan(c: Config, p: Pipeline, steps: Sequence[Step]) -> Plan:
    count, elapsed = len(steps), p.env.now - p.began
    seconds = {part: statistics.mean(getattr(s, part) for s in steps) for part in (*PARTS, "evaluation", "total")}
    every = c.evaluation.every_steps
    whole = seconds["total"] + (seconds["evaluation"] / every if every and count % every else seconds["evaluation"])
    gpus = c.learner.world_size * c.learner.gpus_per_rank + c.rollout.num_runners * c.rollout.gpus_per_runner
    services = [_load(p, name, c, count, elapsed) for name in SERVICES]
    rollouts = sum(s.trajectories for s in steps) + p.lost
    found = Plan(
        seconds=seconds,
        tokens_per_second=sum(s.sampled for s in steps) / elapsed,
        sampled_tokens=statistics.mean(s.sampled for s in steps),
        learner_tokens=statistics.mean(s.tokens for s in steps),
        staleness=max(s.staleness for s in steps),
        engines_busy=statistics.mean(r.engine.busy for r in p.runners) / elapsed,
        batch=sum(r.engine.sequence_seconds for r in p.runners) / max(1e-9, sum(r.engine.busy for r in p.runners)),
        learner_busy=seconds["learn"] * count / elapsed,
        tool_actors_busy=max(line.busy for line in p.tools.actors) / elapsed,
        driver_busy=p.driver.busy / elapsed,
        call_seconds=p.tools.call_seconds / max(1, p.tools.calls),
        calls=p.tools.calls / count,
        services=services,
        lost=p.lost / max(1, rollouts),
        gpus=gpus,
        usd_tools=sum(s.usd for s in services),
        usd_gpus=gpus * c.plan.gpu_hour_usd * whole / 3600,
        steps=c.grpo.steps,
        hours=c.grpo.steps * whole / 3600,
        quota_calls=sum(_quota_calls(s, c.tools.actors) for s in services),
        remarks=[],
        what_if=[],
    )
    return replace(found, remarks=_remarks(c, found))


def _load(p: Pipeline, name: str, c: Config, steps: int, elapsed: float) -> ServiceLoad:
    service = p.tools.services[name]
    n, limits = service.counts, service.limits
    rate = limits.rate_per_second if limits else 0.0
    of_rate = n.requests / elapsed / rate if rate else 0.0
    of_slots = n.serving / elapsed / limits.concurrency if limits else 0.0
    return ServiceLoad(
        name,
        requests=n.requests / steps,
        per_second=n.requests / elapsed,
        limit=rate,
        use=max(of_rate, of_slots),
        queued=n.queued / max(1, n.requests),
        failures=n.failures / max(1, n.requests),
        too_late=n.too_late / steps,
        usd=n.usd / steps,
    )


def _quota_calls(load: ServiceLoad, actors: int) -> float:
    """A tool actor that got no token asks again when the next one is due: all that wait ask once per token."""
    if load.requests == 0 or load.limit == 0:
        return 0.0
    return actors * load.limit if load.queued > 1.0 / load.limit else min(load.per_second, actors * LEASES_PER_SECOND)


def _remarks(c: Config, p: Plan) -> list[str]:
    said = []
    if c.plan.warm_up < 2 * c.grpo.staleness:
        said.append(
            f"plan.warm_up={c.plan.warm_up} steps do not settle a run of grpo.staleness={c.grpo.staleness}: set {2 * c.grpo.staleness} or more"
        )
    if p.lost > LOST:
        said.append(f"{p.lost:.1%} of the rollouts are lost to tools that fail or answer too late: those are paid for and not trained")
    for s in p.services:
        if s.too_late >= 1:
            said.append(
                f"{s.too_late:.0f} requests a step stand before tools.{s.name} until tools.deadline_seconds={c.tools.deadline_seconds:g} and are "
                f"given up: raise its rate_per_second or concurrency, or the deadline"
            )
    if c.tools.budget_usd and p.usd_tools * c.grpo.steps > c.tools.budget_usd:
        pays = math.floor(c.tools.budget_usd / p.usd_tools)
        said.append(
            f"tools.budget_usd={c.tools.budget_usd:g} pays for {pays} of {c.grpo.steps} steps: the run would need {p.usd_tools * c.grpo.steps:,.0f}"
        )
    if p.driver_busy > 0.5:
        said.append(f"the driver is busy {p.driver_busy:.0%} of the time: fewer, larger groups in flight, or the step cannot get shorter")
    sync = p.seconds["sync"]
    if sync > min(c.grpo.sync_seconds, c.rollout.sync_seconds):
        said.append(
            f"a weight sync takes {sync:.0f} s and would miss its deadline: raise grpo.sync_seconds and rollout.sync_seconds, or a faster way"
        )
    return said


# ---------------------------------------------------------------------------------------------------- what if


def doubled(config: Config, seconds: float) -> list[WhatIf]:
    """Each part twice as good in turn; those that make no difference at all are left out."""
    found = []
    for part, change in _CHANGES.items():
        other = step_seconds(change(config))
        found.append(WhatIf(part, other, 1 - other / seconds))
    return sorted(found, key=lambda w: -w.saved)


def _scaled(costs: Any, by: float, *names: str) -> Any:
    return replace(costs, **{name: by * getattr(costs, name) for name in names})


def _engines(c: Config) -> Config:
    faster = _scaled(c.plan.engine, 0.5, "step_seconds", "sequence_seconds", "prompt_token_seconds", "turn_seconds")
    return replace(c, plan=replace(c.plan, engine=faster))


def _learner(c: Config) -> Config:
    return replace(c, plan=replace(c.plan, learner=_scaled(c.plan.learner, 0.5, "token_seconds", "optimiser_seconds")))


def _services(c: Config) -> Config:
    faster = {name: _scaled(service_costs(c.plan, name), 0.5, "median_seconds") for name in SERVICES}
    return replace(c, plan=replace(c.plan, **faster))


def _limits(c: Config) -> Config:
    def wide(p: ProviderConfig) -> ProviderConfig:
        return replace(p, rate_per_second=2 * p.rate_per_second, burst=2 * p.burst, concurrency=2 * p.concurrency)

    t = c.tools
    wider = replace(
        t,
        image_host=wide(t.image_host),
        image_search=wide(t.image_search),
        text_search=wide(t.text_search),
        reader=wide(t.reader),
        summariser=wide(t.summariser),
    )
    return replace(c, tools=wider)


def _sync(c: Config) -> Config:
    wider = _scaled(c.plan.sync, 2, "publish_per_second", "load_per_second", "network_per_second")
    return replace(c, plan=replace(c.plan, sync=_scaled(wider, 0.5, "pause_seconds", "turn_seconds")))


def _driver(c: Config) -> Config:
    faster = _scaled(c.plan.driver, 0.5, "group_seconds", "held_seconds", "prompt_seconds", "step_seconds")
    return replace(c, plan=replace(c.plan, driver=faster))


_CHANGES: dict[str, Callable[[Config], Config]] = {
    "engines": _engines,
    "learner": _learner,
    "services' latencies": _services,
    "services' limits": _limits,
    "tool actors": lambda c: replace(c, tools=replace(c.tools, actors=2 * c.tools.actors)),
    "weight sync": _sync,
    "driver and data feeder": _driver,
}
