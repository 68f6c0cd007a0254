"""What a plan is told beside the run's own settings: what the parts cost, how the policy behaves, what is asked. Pure.

Promise: everything that the run itself is told (groups, staleness, runners, ranks, limits, prices, deadlines) is read from the run's
sections and stands nowhere here, so a plan of a config is a plan of that very run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SERVICES = ("image_host", "image_search", "thumbnails", "text_search", "reader", "summariser")
STEPS = {"image", "text", "answer"}


@dataclass
class EngineCosts:
    """One vLLM engine, whatever number of GPUs it has."""

    step_seconds: float = 0.003  # of one decoding step, however few sequences are in it
    sequence_seconds: float = 0.0001  # that each sequence adds to it
    prompt_token_seconds: float = 0.0  # of computing one token of a prompt; sampling stands still meanwhile
    turn_seconds: float = 0.0  # of the runner's own process per turn, one turn after the other: pictures, tokens, sealing
    kv_tokens: int = 0  # of context that the cache holds; 0: as many as rollout.max_num_seqs sequences need


@dataclass
class PolicyShape:
    """What rollouts look like."""

    # share of rollouts by course of action, in the notation of agent.allowed_paths
    courses: dict[str, float] = field(default_factory=lambda: {"answer": 0.3, "text,answer": 0.2, "image,text,answer": 0.5})
    prompt_tokens: int = 1_700  # of the first prompt, picture and all
    image_tokens: int = 700  # that an image search adds to the context: thumbnails, titles, the prompt after it
    text_tokens: int = 900  # that a text search adds
    turn_tokens: float = 150.0  # sampled in a turn, in the mean
    turn_spread: float = 0.6  # standard deviation of its logarithm; 0: every turn is the mean


@dataclass
class ServiceCosts:
    """How one service answers, and what its caches save. Limits and prices are in its section of `tools`."""

    median_seconds: float = 0.5
    tail: float = 0.5  # standard deviation of the logarithm; 0: every request takes the median
    most_seconds: float = 60.0  # no request takes longer
    failure_rate: float = 0.0  # of requests, in a way that is worth another attempt
    known: float = 0.0  # share of requests that a cache answers, or that join one under way; image searches: beyond those of the own group
    input_tokens: float = 0.0  # of a request, where the price is by tokens
    output_tokens: float = 0.0


@dataclass
class ToolActorCosts:
    """One process each; its event loop does one thing at a time."""

    call_seconds: float = 0.0005  # of one call: arguments, caches, the result
    request_seconds: float = 0.0005  # of one request to a service: HTTP, checks


@dataclass
class LearnerCosts:
    token_seconds: float = 0.00014  # forward and backward of one token on one rank, optimiser steps left out
    scoring: float = 0.25  # a forward pass alone, as a share of that: the KL term's reference, and the old log-probs of later mini-batches
    optimiser_seconds: float = 0.0  # of one optimiser step of all ranks, reduction of the gradients included
    balance: float = 1.0  # mean work of the ranks over that of the busiest one
    fixed_seconds: float = 0.0  # of one update: planning, collating
    contention: float = 1.0  # how much longer an update takes while runners share its cores; 1 where they have their own


@dataclass
class SyncCosts:
    """Weights on their way. The bytes travel once to each node that has runners."""

    bytes: float = 0.0  # of one version
    publish_per_second: float = 12e9  # bytes that rank 0 puts into the object store
    load_per_second: float = 16e9  # bytes that an engine takes out of it
    network_per_second: float = 2.5e9  # bytes that leave the publishing node
    sharing: float = 1.25  # how much faster than that all nodes are served, because they serve each other too
    runners_per_node: int = 8
    pause_seconds: float = 0.04  # that an engine stands still beyond the loading
    call_seconds: float = 0.001  # of the driver for each runner
    turn_seconds: float = 0.0  # colocated: from the engines' turn to the learner's, or back


@dataclass
class DriverCosts:
    group_seconds: float = 0.001  # of the driver for one group: dispatch, arrival
    held_seconds: float = 0.0  # that each prompt in flight adds to that: the driver looks through all of them
    prompt_seconds: float = 0.0017  # of the data feeder for one prompt
    step_seconds: float = 0.0  # record, progress, trackers


@dataclass
class PlanConfig:
    """jobs/plan.py."""

    engine: EngineCosts = field(default_factory=EngineCosts)
    policy: PolicyShape = field(default_factory=PolicyShape)
    image_host: ServiceCosts = field(default_factory=lambda: ServiceCosts(0.3, 0.5))
    image_search: ServiceCosts = field(default_factory=ServiceCosts)
    thumbnails: ServiceCosts = field(default_factory=lambda: ServiceCosts(0.2, 0.8))
    text_search: ServiceCosts = field(default_factory=ServiceCosts)
    reader: ServiceCosts = field(default_factory=ServiceCosts)
    summariser: ServiceCosts = field(default_factory=ServiceCosts)
    tool_actor: ToolActorCosts = field(default_factory=ToolActorCosts)
    learner: LearnerCosts = field(default_factory=LearnerCosts)
    sync: SyncCosts = field(default_factory=SyncCosts)
    driver: DriverCosts = field(default_factory=DriverCosts)
    steps: int = 3  # that are simulated and counted
    warm_up: int = 2  # that are simulated before
    gpu_hour_usd: float = 0.0  # price of one GPU
    what_if: bool = True  # also: what would a step be with each part twice as fast
    target_seconds: float = 0.0  # look for the fewest runners and tool actors with which a step takes no longer; 0: do not
    gpus: int = 0  # look for the best split of so many GPUs between runners and ranks; 0: do not
    most_runners: int = 4096  # that the search for a target goes up to
    out: str = ""  # JSON file; "": <run.dir>/plans/<run.name>.json


def complaint(c: PlanConfig) -> str:
    """One sentence about a setting that cannot be; "" when all is well."""
    return next((f"plan.{sentence}" for wrong, sentence in _rules(c) if wrong), "")


def _rules(c: PlanConfig) -> list[tuple[bool, str]]:
    courses = c.policy.courses
    strange = [name for name in courses if set(name.split(",")) - STEPS or name.split(",")[-1] != "answer"]
    services = {name: service_costs(c, name) for name in SERVICES}
    return [
        (bool(strange), f"policy.courses has {strange[:1]}: a course is image/text steps that end in answer"),
        (min(courses.values(), default=0.0) < 0, "policy.courses has a share below 0"),
        (abs(sum(courses.values()) - 1) > 0.01, f"policy.courses add up to {sum(courses.values()):.3g} and not to 1: shares of all rollouts"),
        (c.policy.turn_tokens < 1, "policy.turn_tokens must be at least 1"),
        (c.engine.step_seconds <= 0, "engine.step_seconds must be above 0: measure it, or take the weights' bytes over the memory's bandwidth"),
        (c.engine.sequence_seconds < 0, "engine.sequence_seconds must be 0 or more"),
        (c.learner.token_seconds <= 0, "learner.token_seconds must be above 0: python -m mmsr_ray.learner.benchmark measures tokens per second"),
        (not 0 < c.learner.balance <= 1, "learner.balance must lie above 0 and at most at 1"),
        (c.learner.contention < 1, "learner.contention must be at least 1"),
        (c.sync.runners_per_node < 1, "sync.runners_per_node must be at least 1"),
        (min(c.sync.publish_per_second, c.sync.load_per_second, c.sync.network_per_second) <= 0, "sync: rates must be above 0 bytes a second"),
        (c.sync.sharing < 1, "sync.sharing must be at least 1: 1 is a publisher that serves every node itself"),
        (c.steps < 1 or c.warm_up < 0, "steps must be at least 1 and warm_up 0 or more"),
        (c.most_runners < 1, "most_runners must be at least 1"),
        *((s.median_seconds < 0 or s.tail < 0, f"{name}: median_seconds and tail must be 0 or more") for name, s in services.items()),
        *((not 0 <= s.failure_rate < 1, f"{name}.failure_rate must be at least 0 and below 1") for name, s in services.items()),
        *((not 0 <= s.known <= 1, f"{name}.known must lie between 0 and 1") for name, s in services.items()),
    ]  # fmt: skip


def service_costs(c: PlanConfig, name: str) -> ServiceCosts:
    found: ServiceCosts = getattr(c, name)
    return found
