"""GRPO with its real parts: faults in the middle of a step, checkpoints, and who was trained in the end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import ray

from mmsr_ray.algorithms.grpo import GRPO
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.config import Config
from mmsr_ray.evaluation.trajectories import read_trajectories
from mmsr_ray.types import Outcome
from tests.algorithms.conftest import QUESTIONS, lines, trained
from tests.rollout.scripted import kill_engine

pytestmark = pytest.mark.heavy


def kill_with_groups_in_flight(algorithm: GRPO, runner: int) -> threading.Thread:
    """Kill a runner as soon as a group was sent to it (a group takes it a second or so)."""

    def watch() -> None:
        while not any(
            flight.runner == runner and time.monotonic() - flight.since < 0.1 for flight in [*algorithm.sampler._flights.values()]
        ):
            time.sleep(0.001)
        ray.kill(algorithm.parts.runners.actor(runner), no_restart=False)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def kill_tools(config: Config) -> None:
    """The actor that searches and the one that keeps limits and money; Ray restarts both."""
    for name in ("0", "quota"):
        ray.kill(ray.get_actor(f"tools:{config.run.name}:{name}", namespace=config.run.namespace), no_restart=False)


def test_whatever_is_killed_every_prompt_is_trained_once(config: Config, tmp_path: Path) -> None:
    """One run, a kill or two before or in each step: runner, feeder, weight store, engine, tools, learner rank."""
    config.grpo.staleness, config.grpo.steps = 1, 6
    folder = tmp_path / "run"
    algorithm = GRPOConfig.from_config(config).build_algo()
    assert isinstance(algorithm, GRPO)
    parts = algorithm.parts

    algorithm.train()
    killer = kill_with_groups_in_flight(algorithm, runner=1)
    algorithm.train()
    killer.join(timeout=5)
    ray.kill(parts.feed.actor)  # prompts of the next step are out, with samples that die with it
    ray.kill(parts.store)
    algorithm.train()
    assert [line["step"] for line in lines(folder)] == [1, 2, 3]
    assert sum(line["requeued"] for line in lines(folder)) >= 1
    kill_tools(config)
    parts.runners.actor(2).apply.remote(kill_engine)
    algorithm.train()
    algorithm.save_to_path(tmp_path / "checkpoint")
    ray.kill(parts.learners.ranks[1])
    algorithm.train()  # the learner restarts from the checkpoint, of the step before
    algorithm.train()
    algorithm.stop()

    records = lines(folder)
    assert [line["step"] for line in records] == [1, 2, 3, 4, 5, 6]
    versions = [line["version"] for line in records]
    assert versions == sorted(set(versions)), "a version number is never used twice"
    assert all(line["staleness_max"] <= 1 for line in records)
    for line in records:
        seconds = line["seconds"]
        assert sum(seconds[part] for part in ("generate", "tools", "idle", "learn", "sync")) == pytest.approx(seconds["total"])
        assert 0 <= line["overlap"] <= 1
    assert any(line["seconds"]["generate"] > 0 for line in records)
    counts = Counter(uid for uids in trained(folder).values() for uid in uids)
    assert len(counts) == 6 * config.grpo.groups_per_step < QUESTIONS
    assert set(counts.values()) == {1}
    kept = [row for row in read_trajectories(folder / "trajectories") if row.step is not None]
    assert all(row.outcome is not Outcome.INFRA_ERROR and row.reward is not None for row in kept)
    assert (folder / "model" / "config.json").is_file(), "exported after the last step"
