"""GRPO with its real parts: faults in the middle of a step, evaluation, checkpoints, and who was trained in the end."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from safetensors.torch import load_file

from mmsr_ray.algorithms import checkpoints
from mmsr_ray.algorithms.checkpoints import CheckpointError
from mmsr_ray.algorithms.export import Source
from mmsr_ray.algorithms.grpo import GRPO
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.config import Config, to_dict
from mmsr_ray.evaluation.rows import rows_file
from mmsr_ray.evaluation.trajectories import read_trajectories
from mmsr_ray.learner.consolidate import consolidated
from mmsr_ray.types import Outcome
from tests.algorithms.conftest import QUESTIONS, lines, trained
from tests.rollout.scripted import kill_engine

pytestmark = pytest.mark.heavy


def kill_with_groups_in_flight(algorithm: GRPO, runner: int) -> threading.Thread:
    """Kill a runner's engine, upon which the runner exits, as soon as a group was sent to it (a group takes it a second or so)."""

    def watch() -> None:
        while not any(
            flight.runner == runner and time.monotonic() - flight.since < 0.1 for flight in [*algorithm.sampler._flights.values()]
        ):
            time.sleep(0.001)
        algorithm.parts.runners.actor(runner).apply.remote(kill_engine)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def kill_tools(config: Config) -> None:
    """The actor that searches and the one that keeps limits and money; Ray restarts both."""
    for name in ("0", "quota"):
        ray.kill(ray.get_actor(f"tools:{config.run.name}:{name}", namespace=config.run.namespace), no_restart=False)


def test_whatever_dies_or_is_damaged_every_prompt_is_trained_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config.grpo.staleness = 1
    config.evaluation.every_steps, config.evaluation.questions_during = 2, 2
    folder = tmp_path / "run"
    algorithm = GRPOConfig.from_config(config).build_algo()
    assert isinstance(algorithm, GRPO)

    algorithm.train()
    killer = kill_with_groups_in_flight(algorithm, runner=1)
    algorithm.train()
    killer.join(timeout=5)
    algorithm.save_to_path(tmp_path / "second")
    ray.kill(algorithm.parts.feed.actor)  # prompts of the next step are out, with samples that die with it
    ray.kill(algorithm.parts.store)
    algorithm.train()
    records = lines(folder)
    assert [line["step"] for line in records] == [1, 2, 3]
    assert sum(line["requeued"] for line in records) >= 1
    algorithm.save_to_path(tmp_path / "third")

    # evaluated in between: in the record, in the run folder, the best model kept
    assert ["evaluation" in line for line in records] == [False, True, False]
    assert records[1]["evaluation"]["on_demand"]["questions"] == 2
    assert records[1]["seconds"]["evaluation"] > 0
    assert rows_file(folder, "at step 2").is_file()
    assert json.loads((folder / "best" / "best.json").read_text())["step"] == 2
    assert (folder / "best" / "model.safetensors").is_file()

    # a full disk costs a checkpoint and not the training
    with monkeypatch.context() as full, caplog.at_level(logging.ERROR):
        full.setattr(checkpoints, "free_bytes", lambda path: 0)
        algorithm.save_to_path(tmp_path / "full")
    assert "0 bytes are free there: make room. Training goes on; the last checkpoint stays that of step 3" in caplog.text
    other = replace(config, grpo=replace(config.grpo, group_size=7))
    with pytest.raises(CheckpointError, match=r"grpo\.group_size was 7 and is 2"):
        algorithm.set_state(algorithm._last_state | {"settings": to_dict(other)})

    # the newest checkpoint is damaged when a rank dies: the learner restarts from the one before
    newest = folder / "checkpoints" / "step_00000003"
    shard = next((newest / "learner").glob("*optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[:-100])
    ray.kill(algorithm.parts.learners.ranks[1])
    algorithm.train()  # step 3 again
    kill_tools(config)
    algorithm.train()
    algorithm.stop()
    assert "is cut short: learner/" in caplog.text

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
    kept = [row for row in read_trajectories(folder / "trajectories") if row.step is not None]
    assert all(row.outcome is not Outcome.INFRA_ERROR and row.reward is not None for row in kept), "no failure in a gradient"
    assert (folder / "model" / "config.json").is_file(), "exported after the last step"

    # the checkpoint alone is enough for a model of its step
    export = Source.find(folder / "checkpoints" / "step_00000002")
    assert (export.step(config), export.config()) == (2, config)
    assert consolidated(export.path, config).keys() == load_file(folder / "best" / "model.safetensors").keys()
