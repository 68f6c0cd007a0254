"""Weights that reach the engines without the object store, in a run with its real parts: the right ones, and by the store where that fails."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
import ray

from mmsr_ray.algorithms.grpo import GRPO
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.config import Config
from mmsr_ray.rollout.env_runner import SearchEnvRunner
from mmsr_ray.types import Sampling
from tests.algorithms.conftest import lines
from tests.rollout.scripted import generate, kill_engine

pytestmark = pytest.mark.heavy
WAIT = 60.0

Told = tuple[float, ...]  # log-probs of one answer


def built(config: Config) -> GRPO:
    algorithm = GRPOConfig.from_config(config).build_algo()
    assert isinstance(algorithm, GRPO)
    return algorithm


async def told(runner: SearchEnvRunner) -> Told:
    """What the engine makes of a question under its weights."""
    answer = await generate(runner, "what is this?", (1,), Sampling(temperature=0.0, max_tokens=12))
    assert answer.logprobs is not None
    return tuple(answer.logprobs)


async def told_by_the_store(runner: SearchEnvRunner, version: int) -> Told:
    """The same after the version was pulled from the store once more."""
    runner._engine._version = None
    await runner.sync_weights(version)
    return await told(runner)


def all_told(algorithm: GRPO) -> set[Told]:
    runners = algorithm.parts.runners
    return set(ray.get([runners.actor(i).apply.remote(told) for i in runners.healthy()], timeout=WAIT))


def all_told_by_the_store(algorithm: GRPO) -> set[Told]:
    runners = algorithm.parts.runners
    return set(ray.get([runners.actor(i).apply.remote(told_by_the_store, algorithm.version) for i in runners.healthy()], timeout=WAIT))


def wait_for_both(algorithm: GRPO) -> None:
    deadline = time.monotonic() + WAIT
    while len(algorithm.parts.runners.healthy()) < 2:
        assert time.monotonic() < deadline
        algorithm.parts.runners.revive()
        time.sleep(0.1)


def test_engines_in_a_group_with_the_learner_hold_its_weights_and_one_that_dies_comes_back(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config.learner.transport, config.learner.transport_seconds = "collective", 20.0
    config.grpo.staleness, config.grpo.lr = 1, 1e-3
    algorithm = built(config)
    with caplog.at_level(logging.WARNING):
        seen = [all_told(algorithm)]
        for _ in range(2):
            algorithm.train()
            seen.append(all_told(algorithm))
        assert all_told_by_the_store(algorithm) == seen[-1]
        assert [len(one) for one in seen] == [1, 1, 1], "both engines had the same"
        assert len(set.union(*seen)) == 3, "of each step"
        assert "through the object store alone" not in caplog.text

        algorithm.parts.runners.actor(1).apply.remote(kill_engine)
        algorithm.train()  # it may break the group, or be missed before
        algorithm.train()
    wait_for_both(algorithm)
    assert all_told(algorithm) == all_told_by_the_store(algorithm)
    algorithm.stop()
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4]


def test_engines_on_the_learners_card_take_its_weights_where_they_lie(config: Config, tmp_path: Path) -> None:
    config.learner.transport, config.learner.colocated, config.grpo.lr = "ipc", True, 1e-3
    algorithm = built(config)

    def in_store() -> int:
        return algorithm.parts.newest_in_store(WAIT)

    seen = [all_told(algorithm)]
    assert in_store() == 0, "at first they take them from the store"
    for _ in range(2):
        algorithm.train()
        seen.append(all_told(algorithm))
    assert in_store() == 0, "and then no more"
    assert [len(one) for one in seen] == [1, 1, 1]
    assert len(set.union(*seen)) == 3
    assert set(lines(tmp_path / "run")[-1]["turns"]) == {
        *("engines_leave", "learner_returns", "engines_load", "learner_leaves", "engines_return")
    }

    algorithm.parts.runners.actor(1).apply.remote(kill_engine)
    algorithm.train()
    algorithm.train()  # the last: it ends with an evaluation, in which a runner may start over
    assert in_store() == algorithm.version
    wait_for_both(algorithm)
    with algorithm.turns.borrowed(algorithm.version):  # as for a checkpoint
        algorithm.parts.publish(algorithm.version, lambda: None, WAIT)
    assert all_told(algorithm) == all_told_by_the_store(algorithm)
    algorithm.stop()
