"""Which settings can share a card."""

import pytest

from mmsr_ray.config import ConfigError, load
from mmsr_ray.learner.colocation import cards_alone

BASE = ["model.path=m", "data.train=t", "data.test=t", "learner.colocated=true", "learner.world_size=1"]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["rollout.gpus_per_runner=0.5", "learner.gpus_per_rank=0.5"],
        ["learner.zero_stage=1", "learner.offload=optimizer"],
        ["learner.zero_stage=3", "learner.offload=all"],
        ["learner.zero_stage=3", "learner.offload=all", "learner.lora.rank=8"],
        ["learner.zero_stage=3", "learner.offload=optimizer"],
        ["learner.world_size=4", "rollout.num_runners=4"],
        ["learner.lora.rank=8", "learner.lora.sync=adapter"],
    ],
)
def test_possible(settings: list[str]) -> None:
    assert load(None, BASE + settings).learner.colocated


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["grpo.staleness=1"], "grpo.staleness=0"),
        (["learner.world_size=2"], "the same number"),
        (["rollout.max_runners=3"], "no elastic runners"),
        (["rollout.tensor_parallel=2"], "tensor_parallel=1"),
        (["rollout.gpus_per_runner=1", "learner.gpus_per_rank=0.5"], "add up to 1"),
        (["rollout.gpus_per_runner=1"], "must both be 0"),
        (["rollout.gpus_per_runner=0.25", "learner.gpus_per_rank=0.25"], "to more than 0.5"),
        (["learner.zero_stage=0"], "without ZeRO"),
        (["learner.zero_stage=3"], "FusedAdam"),
        (["learner.zero_stage=3", "learner.offload=optimizer", "learner.lora.rank=8"], "offload=all"),
        (["learner.zero_stage=3", "learner.offload=optimizer", "learner.freeze_vision=true"], "offload=all"),
    ],
)
def test_refused_with_a_sentence(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(None, BASE + settings)


def test_an_engine_without_a_rank_has_the_card_to_itself() -> None:
    shared = load(None, [*BASE, "rollout.gpus_per_runner=0.5", "learner.gpus_per_rank=0.5"])
    assert cards_alone(shared.learner, shared.rollout.gpus_per_runner) == 1
    for cards in (0.5, 2):  # where nobody trains, a share of a card is what was asked for
        alone = load(None, [*BASE, "learner.colocated=false", f"rollout.gpus_per_runner={cards}"])
        assert cards_alone(alone.learner, alone.rollout.gpus_per_runner) == cards
    none = load(None, BASE)
    assert cards_alone(none.learner, none.rollout.gpus_per_runner) == 0


@pytest.mark.parametrize(("settings", "cards"), [([], 0), (["rollout.gpus_per_runner=0.5", "learner.gpus_per_rank=0.5"], 1)])
def test_a_rank_that_trains_alone_has_a_whole_card(settings: list[str], cards: float) -> None:
    learner = load(None, BASE + settings).learner
    assert cards_alone(learner, learner.gpus_per_rank) == cards


def test_a_rank_of_a_recipe_that_shares_nothing_keeps_what_it_asks_for() -> None:
    learner = load(None, [*BASE[:3], "learner.gpus_per_rank=0.4"]).learner
    assert cards_alone(learner, learner.gpus_per_rank) == 0.4
