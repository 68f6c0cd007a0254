"""Settings of supervised training: what is refused, and the paper's recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmsr_ray.algorithms.settings import SFTConfig, complaint
from mmsr_ray.algorithms.sft import with_steps
from mmsr_ray.config import ConfigError, load

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (SFTConfig(), ""),
        (SFTConfig(enabled=True), "sft.demonstrations"),
        (SFTConfig(enabled=True, demonstrations="somewhere"), ""),
        (SFTConfig(epochs=-1), "sft.epochs"),
        (SFTConfig(batch_size=0), "sft.batch_size"),
        (SFTConfig(warmup_ratio=1.5), "sft.warmup_ratio"),
        (SFTConfig(lr_schedule="linear"), "'linear'"),
    ],
)
def test_what_cannot_be_is_refused(settings: SFTConfig, said: str) -> None:
    told = complaint(settings, atlas=False)
    assert said in told if said else not told


def test_atlas_makes_its_own_demonstrations() -> None:
    assert complaint(SFTConfig(enabled=True), atlas=True) == ""
    with pytest.raises(ConfigError, match="oracle or worldly"):
        load(CONFIGS / "atlas.yaml", ["atlas.teacher=parrot"])


def test_the_papers_recipe() -> None:
    config = load(CONFIGS / "sft_paper.yaml").sft
    assert (config.lr, config.batch_size, config.lr_schedule, config.warmup_ratio) == (1e-5, 16, "cosine", 0.1)
    assert with_steps(config, 8000).steps == 500, "one epoch of 8,000"
    assert with_steps(SFTConfig(steps=7), 8000).steps == 7
