"""GRPO with its real parts: faults in the middle of a step, checkpoints, and who was trained in the end."""

from __future__ import annotations

import json
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
from tests.algorithms.conftest import QUESTIONS

pytestmark = pytest.mark.heavy


def trained(folder: Path) -> dict[int, list[str]]:
    """Training step -> uids of its groups, from the trajectories in the run folder (the tests keep all of them)."""
    steps: dict[int, set[str]] = {}
    for row in read_trajectories(folder / "trajectories"):
        if row.step is not None:  # not of an evaluation
            steps.setdefault(row.step, set()).add(row.uid)
    return {step: sorted(uids) for step, uids in steps.items()}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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


def test_a_killed_runner_and_a_killed_rank_leave_every_prompt_trained_once(config: Config, tmp_path: Path) -> None:
    config.grpo.staleness = 1
    folder = tmp_path / "run"
    algorithm = GRPOConfig.from_config(config).build_algo()
    assert isinstance(algorithm, GRPO)

    algorithm.train()
    killer = kill_with_groups_in_flight(algorithm, runner=1)
    algorithm.train()
    killer.join(timeout=5)
    algorithm.train()
    records = lines(folder)
    assert [line["step"] for line in records] == [1, 2, 3]
    assert sum(line["requeued"] for line in records) >= 1
    algorithm.save_to_path(tmp_path / "checkpoint")

    rank = algorithm.parts.learners.ranks[1]
    ray.kill(rank)
    algorithm.train()  # the learner restarts from the checkpoint, of the step before
    algorithm.stop()

    records, steps = lines(folder), trained(folder)
    assert [line["step"] for line in records] == [1, 2, 3, 4]
    versions = [line["version"] for line in records]
    assert versions == sorted(set(versions)), "a version number is never used twice"
    assert all(line["staleness_max"] <= 1 for line in records)
    for line in records:
        seconds = line["seconds"]
        assert sum(seconds[part] for part in ("generate", "tools", "idle", "learn", "sync")) == pytest.approx(seconds["total"])
        assert 0 <= line["overlap"] <= 1
    assert any(line["seconds"]["generate"] > 0 for line in records)
    counts = Counter(uid for uids in steps.values() for uid in uids)
    assert len(counts) == 4 * config.grpo.groups_per_step < QUESTIONS
    assert set(counts.values()) == {1}
    assert (folder / "model" / "config.json").is_file(), "exported after the last step"
