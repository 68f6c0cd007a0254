"""Runners that answer questions with one model, an engine's or a chat service's, without a training run around them.

Promise: `answering` and `engines` give only runners that are up, and leave none behind. Ray restarts one that dies.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.tune import PlacementGroupFactory

from jobs.room import free_room, wait_for_room
from mmsr_ray.config import Config, to_dict
from mmsr_ray.evaluation.endpoint import EndpointRunner
from mmsr_ray.learner.colocation import cards_alone
from mmsr_ray.nodes import bundle_of, resources
from mmsr_ray.rollout.env_runner import SearchEnvRunner

logger = logging.getLogger(__name__)

EXTRA_CALLS = 16  # of a runner, beside its questions: pings, statistics
STOP_SECONDS = 10.0


class NoEngine(RuntimeError):
    """No engine came up with the model; the message holds the first reason."""


@contextmanager
def answering(config: Config) -> Iterator[list[ActorHandle]]:
    """Runners that answer with the model that is evaluated: `engines`, or one that asks the chat service that tools.model names.

    Raises NoRoom and NoEngine as `engines`.
    """
    if config.tools.model.kind == "none":
        with engines(config) as runners:
            yield runners
    else:
        with _running([_endpoint(config)], config) as runners:
            yield runners


@contextmanager
def engines(config: Config) -> Iterator[list[ActorHandle]]:
    """`rollout.num_runners` engines with the model of model.path, or as many as the cluster has room for (0).

    Raises NoRoom where the cluster has no place for them, NoEngine where none is up within `rollout.start_seconds`.
    """
    with _running(_engines(config), config) as runners:
        yield runners


@contextmanager
def _running(runners: list[ActorHandle], config: Config) -> Iterator[list[ActorHandle]]:
    """Those that come up; all of them end."""
    try:
        yield _those_up(runners, config.rollout.start_seconds)
    finally:
        stopping: list[Any] = [runner.stop.remote() for runner in runners]
        ray.wait(stopping, num_returns=len(stopping), timeout=STOP_SECONDS)
        for runner in runners:
            ray.kill(runner)


def queue_length(config: Config) -> int:
    """Questions in flight on one engine: twice what it samples at a time, so that a batch that ends as one finds the next one there."""
    return 2 * config.rollout.max_num_seqs


def _endpoint(config: Config) -> ActorHandle:
    kind: Any = ray.remote(EndpointRunner).options(num_cpus=0, max_restarts=-1, max_concurrency=queue_length(config) + EXTRA_CALLS)
    return kind.remote(to_dict(config))


def _engines(config: Config) -> list[ActorHandle]:
    """One engine each, started at their first ping."""
    made = AlgorithmConfig()  # what RLlib's EnvRunner reads; the rest are our own settings
    made.settings, made.runtime = to_dict(config), {"store": None}  # type: ignore[attr-defined]
    kind: Any = ray.remote(SearchEnvRunner).options(
        num_cpus=config.rollout.cpus_per_runner,
        num_gpus=cards_alone(config.learner, config.rollout.gpus_per_runner),
        resources=resources(config.rollout.node),
        max_restarts=-1,
        max_concurrency=queue_length(config) + EXTRA_CALLS,
    )
    return [kind.remote(config=made, worker_index=number + 1) for number in range(_count(config))]


def _count(config: Config) -> int:
    rollout = config.rollout
    engine = bundle_of(rollout.cpus_per_runner, cards_alone(config.learner, rollout.gpus_per_runner), rollout.node)
    if not engine:
        return rollout.num_runners or 1
    wait_for_room(PlacementGroupFactory([engine] * (rollout.num_runners or 1)), config.grpo.placement_seconds, "the evaluation")
    return rollout.num_runners or max(free_room(engine), 1)


def _those_up(runners: Sequence[ActorHandle], seconds: float) -> list[ActorHandle]:
    pings = {runner.ping.remote(): runner for runner in runners}
    ray.wait(list(pings), num_returns=len(pings), timeout=seconds)
    up, reasons = [], []
    for ping, runner in pings.items():
        try:
            ray.get(ping, timeout=0)
            up.append(runner)
        except RayError as error:  # GetTimeoutError is one
            reasons.append(str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__)
    if not up:
        raise NoEngine(f"no engine is up within rollout.start_seconds={seconds:.0f}: {reasons[0]}")
    if reasons:
        logger.warning("%d of %d engines did not start, the others go on: %s", len(reasons), len(runners), reasons[0])
    return up
