"""The warm start: its order of demonstrations, and that the real learner learns from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.algorithms import sft
from mmsr_ray.algorithms.demonstrations import items_of
from mmsr_ray.algorithms.sft import SFTError, batches, fine_tune, train_sft
from mmsr_ray.atlas.prepare import load_codec
from mmsr_ray.atlas.teacher import demonstrations
from mmsr_ray.atlas.world import World
from mmsr_ray.config import Config, SFTConfig
from mmsr_ray.learner.group import LearnerError, LearnerGroup
from tests.algorithms.conftest import run_config


def test_every_epoch_is_a_permutation_and_the_seed_decides_it() -> None:
    drawn = list(batches([2, 1, 3], batch_size=4, seed=1, steps=6))
    pairs = [pair for batch in drawn for pair in batch]
    everything = {(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)}
    for epoch in range(4):
        assert set(pairs[6 * epoch : 6 * epoch + 6]) == everything
    assert Counter(pairs) == dict.fromkeys(everything, 4)
    assert drawn == list(batches([2, 1, 3], batch_size=4, seed=1, steps=6))
    assert drawn != list(batches([2, 1, 3], batch_size=4, seed=2, steps=6))
    with pytest.raises(SFTError, match="no demonstrations"):
        next(batches([], batch_size=4, seed=1, steps=1))


def test_ranks_that_share_cards_in_reinforcement_have_whole_ones_here(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two of half a card each would come to one card. There is no card here: who would start the ranks only looks at what they ask for."""
    asked: list[float] = []

    class Group(LearnerGroup):
        def start(self) -> None:
            asked.append(self._config.learner.gpus_per_rank)
            raise LearnerError("no card")

    monkeypatch.setattr(sft, "LearnerGroup", Group)
    config = run_config(tiny_model, tmp_path)
    shared = replace(config, learner=replace(config.learner, colocated=True, gpus_per_rank=0.5))
    with pytest.raises(LearnerError, match="no card"):
        fine_tune(shared, config.model.path, list, tmp_path / "model")
    assert asked == [1]


@pytest.mark.heavy
def test_the_loss_falls_and_the_exported_model_is_whole(config: Config, tmp_path: Path) -> None:
    made = demonstrations(World(0, known=4), load_codec(config), PromptSet.load(config.agent.prompts), config.agent, count=12)
    learners = LearnerGroup(config, config.model.path)
    learners.start()
    settings = SFTConfig(steps=24, batch_size=6, lr=3e-3, warmup_ratio=0.1)
    losses: list[float] = []
    try:
        metrics = train_sft(
            learners,
            [(ray.put(group), items_of(group)) for group in made],
            settings,
            seed=0,
            on_step=lambda step, values: losses.append(values["loss"]),
        )
        learners.export(tmp_path / "model")
    finally:
        learners.shutdown()
    assert len(losses) == settings.steps
    assert metrics["loss_mean"] < 0.7 * losses[0]
    assert metrics["lr"] < settings.lr / 10, "the cosine has come down"
    assert load_codec(replace(config, model=replace(config.model, path=str(tmp_path / "model")))).end_id is not None
