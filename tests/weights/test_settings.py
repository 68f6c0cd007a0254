"""Which transports go with which settings."""

import pytest

from mmsr_ray.config import ConfigError, load

BASE = ["model.path=m", "data.train=t", "data.test=t"]
SHARED = ["learner.colocated=true", "learner.world_size=1", "learner.transport=ipc"]
SENT = ["learner.transport=collective"]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        SENT,
        [*SENT, "learner.gpus_per_rank=1", "rollout.gpus_per_runner=2", "rollout.tensor_parallel=2", "learner.zero_stage=3"],
        SHARED,
        [*SHARED, "learner.zero_stage=1", "learner.gpus_per_rank=0.5", "rollout.gpus_per_runner=0.5"],
    ],
)
def test_possible(settings: list[str]) -> None:
    load(None, BASE + settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["learner.transport=pigeon"], "choose object_store, collective or ipc"),
        ([*SENT, "learner.transport_seconds=0"], "choose more than 0"),
        ([*SENT, "grpo.sync_seconds=100"], "at most a quarter"),
        ([*SENT, "rollout.update=wait"], "choose keep, or object_store"),
        ([*SENT, "learner.colocated=true", "learner.world_size=1"], "no two members on one card: choose ipc"),
        ([*SENT, "learner.gpus_per_rank=1"], "both sides on cards"),
        ([*SENT, "learner.gpus_per_rank=1", "rollout.gpus_per_runner=0.5"], "to whole cards"),
        (["learner.transport=ipc"], "set learner.colocated=true"),
        ([*SHARED, "learner.zero_stage=3", "learner.offload=all"], "zero_stage 1 or 2"),
        ([*SHARED, "learner.lora.rank=4"], "merged ones lie nowhere"),
    ],
)
def test_refused_with_a_sentence(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(None, BASE + settings)
