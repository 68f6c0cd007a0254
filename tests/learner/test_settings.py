"""Learner settings that cannot be are refused with what to do."""

from __future__ import annotations

import pytest

from mmsr_ray.config import ConfigError, load

BASE = ["model.path=x", "data.train=none", "data.test=none"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("learner.zero_stage=4", "choose 0, 1, 2 or 3"),
        ("learner.dtype=bf16", "choose float32 or bfloat16"),
        ("learner.device=gpu", "choose auto, cpu or cuda"),
        ("learner.micro_batch_tokens=-1", "0 .as many as memory allows. or more"),
        ("learner.memory_share=0", "above 0 and at most 1"),
        ("learner.probe=sometimes", "auto, always or never"),
        ("learner.lora.sync=whole", "merged or adapter"),
        ("learner.lora.sync=adapter", "set learner.lora.rank, or choose merged"),
        ("learner.offload=all", "needs learner.zero_stage 3"),
        ("learner.packing=maybe", "auto, never or always"),
    ],
)
def test_impossible_settings_are_refused(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^learner.*{said}"):
        load(None, [*BASE, setting])


def test_possible_ones_are_not() -> None:
    config = load(
        None, [*BASE, "learner.micro_batch_tokens=0", "learner.lora.rank=4", "learner.lora.sync=adapter", "learner.offload=optimizer"]
    )
    assert (config.learner.micro_batch_tokens, config.learner.lora.sync) == (0, "adapter")
