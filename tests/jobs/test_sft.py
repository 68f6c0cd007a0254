"""The supervised job on cards: it waits for a whole one for each rank, and says what is missing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from jobs.room import NoRoom
from jobs.sft import sft
from mmsr_ray.config import load


@pytest.fixture
def one_card() -> Iterator[None]:
    """As Ray counts them: nobody computes on it here."""
    ray.init(
        num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=100 << 20, logging_level=logging.ERROR, log_to_driver=False
    )
    yield
    ray.shutdown()


@pytest.mark.heavy
def test_two_ranks_that_would_share_a_card_in_reinforcement_find_no_room_on_one(one_card: None, tmp_path: Path) -> None:
    asked = ["learner.colocated=true", "rollout.gpus_per_runner=0.5", "learner.gpus_per_rank=0.5", "learner.cpus_per_rank=0.5"]
    asked += ["learner.world_size=2", "rollout.num_runners=2", "grpo.placement_seconds=1"]
    config = load(None, ["model.path=m", "data.train=t", "data.test=t", *asked])
    with pytest.raises(NoRoom, match=r"no room for the supervised training within .* 2 x .*GPU"):
        sft(config, "m", [], tmp_path)
