"""What happens when optimiser steps are skipped: told, and after three in a row the batch is kept and the run ends."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import ray

from mmsr_ray.algorithms import nonfinite
from mmsr_ray.algorithms.grpo import GRPO
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.config import Config
from mmsr_ray.types import Group, Outcome, Reward, Sample, SealedTokens, Trajectory
from tests.algorithms.searcher import Answerer
from tests.learner.conftest import make_row


def make_group(uid: str = "q") -> Group:
    tokens = [make_row(1).tokens, make_row(2, pictures=()).tokens]
    trajectories = tuple(
        Trajectory(uid, i, "on_demand", "Where?", (), Outcome.OK, "", "Paris", t, Reward(0.5, True, True, 0)) for i, t in enumerate(tokens)
    )
    return Group(uid, 0, Sample(uid, "Where?", b"", ("Paris",)), trajectories)


def same(a: SealedTokens, b: SealedTokens) -> bool:
    arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("ids", "loss_mask", "logprobs", "versions", "grids"))
    return arrays and a.pictures == b.pictures


def test_a_kept_batch_is_what_was_trained(tmp_path: Path) -> None:
    group = make_group()
    nonfinite.write_batch(tmp_path / "new" / "batch.parquet", [group, make_group("r")])
    rows = nonfinite.read_batch(tmp_path / "new" / "batch.parquet")
    assert [(uid, index) for uid, index, _ in rows] == [("q", 0), ("q", 1), ("r", 0), ("r", 1)]
    assert all(same(tokens, group.trajectories[index].tokens) for _, index, tokens in rows)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["batch.parquet"]


def learned(skipped: float, in_a_row: float) -> dict[str, float]:
    return {"skipped": skipped, "skipped_in_a_row": in_a_row}


def test_one_or_two_bad_steps_are_told_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert nonfinite.verdict(learned(0, 0), 4, [], tmp_path) == ""
        assert not caplog.records
        assert nonfinite.verdict(learned(1, 2), 5, [], tmp_path) == ""
    assert "step 5: 1 optimiser steps were skipped" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.heavy
def test_the_third_in_a_row_keeps_the_batch(cluster: None, tmp_path: Path) -> None:
    said = nonfinite.verdict(learned(1, 3), 6, [ray.put(make_group())], tmp_path)
    assert "3 optimiser steps in a row" in said
    assert "nonfinite_step_00006.parquet" in said
    assert len(nonfinite.read_batch(tmp_path / "nonfinite_step_00006.parquet")) == 2
    (tmp_path / "file").touch()
    said = nonfinite.verdict(learned(1, 4), 7, [ray.put(make_group())], tmp_path / "file")
    assert "could not be written" in said, "a file that cannot be written must not hide why the run stops"


@pytest.mark.heavy
def test_a_run_whose_losses_are_not_finite_stops(config: Config, tmp_path: Path) -> None:
    """The real learner with an infinite step size in its loss: 1e38 * anything overflows."""
    config.rollout.num_runners, config.learner.world_size = 1, 1
    config.grpo.loss.entropy_coef = 3e38
    config.grpo.minibatches = 3
    algorithm = GRPOConfig.from_config(config).env_runners(env_runner_cls=Answerer).build_algo()
    assert isinstance(algorithm, GRPO)
    result = algorithm.train()
    assert result["stopped"] == 1.0, "what ends a Tune trial without starting it again"
    (record,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (record["skipped"], record["skipped_in_a_row"]) == (3.0, 3.0)
    rows = nonfinite.read_batch(tmp_path / "run" / "nonfinite_step_00001.parquet")
    assert len({uid for uid, _, _ in rows}) == config.grpo.groups_per_step
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(nonfinite.NonFiniteError, match="3 optimiser steps in a row"):
        algorithm.train()
    algorithm.stop()
