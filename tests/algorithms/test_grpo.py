"""GRPO with its real parts: faults in the middle of a step, checkpoints, and who was trained in the end."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
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
        assert row.step is not None
        steps.setdefault(row.step, set()).add(row.uid)
    return {step: sorted(uids) for step, uids in steps.items()}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def when_in_flight(algorithm: GRPO, act: Callable[[], None]) -> threading.Thread:
    """Run `act` as soon as groups are in flight."""

    def watch() -> None:
        while not algorithm.ledger.flying():
            time.sleep(0.002)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_faults_and_a_restore_leave_every_prompt_trained_once(config: Config, tmp_path: Path) -> None:
    config.grpo.staleness = 1
    folder = tmp_path / "run"
    algorithm = GRPOConfig.from_config(config).build_algo()
    assert isinstance(algorithm, GRPO)

    algorithm.train()
    runner = algorithm.parts.runners.actor(1)
    killer = when_in_flight(algorithm, lambda: ray.kill(runner, no_restart=False))
    algorithm.train()  # a runner dies with groups in flight
    killer.join(timeout=5)
    assert sum(line["requeued"] for line in lines(folder)) >= 1
    checkpoint = algorithm.save_to_path(tmp_path / "checkpoint")
    at_two = trained(folder)

    ray.kill(algorithm.parts.learners.ranks[1])
    algorithm.train()  # a rank dies: the group restarts from the checkpoint, here of the step before
    assert algorithm.finished_steps == 3
    algorithm.stop()
    assert {step: trained(folder)[step] for step in (1, 2)} == at_two

    restored = GRPO.from_checkpoint(checkpoint)
    assert isinstance(restored, GRPO)
    assert restored.finished_steps == restored.training_iteration == 2
    assert [line["step"] for line in lines(folder)] == [1, 2], "step 3 will be done again"
    for _ in range(2):
        restored.train()
    restored.stop()

    steps = trained(folder)
    assert {step: steps[step] for step in (1, 2)} == at_two
    counts = Counter(uid for uids in steps.values() for uid in uids)
    assert len(counts) == 4 * config.grpo.groups_per_step < QUESTIONS
    assert set(counts.values()) == {1}
    records = lines(folder)
    assert [line["step"] for line in records] == [1, 2, 3, 4]
    assert all(line["staleness_max"] <= 1 for line in records)
    assert records[0]["version"] < records[1]["version"] < records[2]["version"]
    assert (folder / "model" / "config.json").is_file(), "exported after the last step"
