"""What a row costs: the shape's operations counted by hand, and what balancing by them is worth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.learner.cost import TOKENS_ONLY, CostModel
from mmsr_ray.learner.plan import Item, MiniBatch, plan_update
from mmsr_ray.learner.settings import LearnerConfig, LoRAConfig
from tests.learner.conftest import make_config

QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vision_config": {
        "hidden_size": 1280,
        "depth": 32,
        "intermediate_size": 3420,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}


def test_a_row_without_pictures_costs_its_tokens_and_their_attention() -> None:
    cost = CostModel(pair=0.01)
    assert cost.row(100) == 100 + 0.01 * 100 * 100 / 2
    assert TOKENS_ONLY.row(100, patches=400, pictures=2) == 100


def test_the_released_shape_by_hand() -> None:
    cost = CostModel.of(QWEN_7B, LearnerConfig())
    weights = 28 * (3584 * (2 * 3584 + 2 * 512) + 3 * 3584 * 18944)  # 6.5e9 of the 7.6e9 parameters; the rest is the vocabulary
    assert weights == pytest.approx(6.5e9, rel=0.01)
    tower = 32 * (4 * 1280**2 + 3 * 1280 * 3420)  # per patch
    merger = 5120 * (5120 + 3584) / 4
    assert cost.patch * 2 * weights == pytest.approx(2 * (tower + merger + 1176 * 1280) + 4 * 1280 * 28 * 64)
    assert cost.pair == pytest.approx(4 * 3584 * 28 / (2 * weights))
    assert cost.patch_pair == pytest.approx(4 * 1280 * 4 / (2 * weights))
    assert 0.3 < 4 * cost.patch < 0.6, "a picture token costs about half a text token more than a text token does"


def test_what_does_not_learn_costs_less() -> None:
    full, frozen = CostModel.of(QWEN_7B, LearnerConfig()), CostModel.of(QWEN_7B, LearnerConfig(freeze_vision=True))
    assert frozen.patch == pytest.approx(full.patch / 3)
    assert frozen.pair == full.pair
    adapted = CostModel.of(QWEN_7B, LearnerConfig(lora=LoRAConfig(rank=8)))
    assert adapted.patch == pytest.approx(full.patch / 2), "a forward pass of the tower against two of the language model"


def test_both_spellings_of_a_config_are_read() -> None:
    nested = {"text_config": {k: v for k, v in QWEN_7B.items() if k != "vision_config"}, "vision_config": QWEN_7B["vision_config"]}
    assert CostModel.of(nested, LearnerConfig()) == CostModel.of(QWEN_7B, LearnerConfig())
    assert CostModel.of(make_config().to_dict(), LearnerConfig()).patch > 0


# ---------------------------------------------------------------------------------------------------- in a plan

COST = CostModel(pair=1e-4, patch=0.5, patch_pair=1e-4)


def skewed(count: int, seed: int = 0) -> list[Item]:
    """Half of the rows have ten thumbnails."""
    rng = np.random.default_rng(seed)
    items = []
    for i in range(count):
        thumbnails = 10 * (i % 2)
        length = int(rng.integers(60, 140)) + 4 * thumbnails
        items.append(Item(i // 8, i % 8, 1.0, length, 20, 1 + thumbnails, 16 + 16 * thumbnails))
    return items


def waiting(mini: MiniBatch, cost: CostModel) -> float:
    """Share of the ranks' time that they wait: at each micro-batch all wait for the slowest."""
    spent = sum(max(portion.cost(cost) for portion in portions) for portions in zip(*mini.ranks, strict=True))
    worked = sum(portion.cost(cost) for rank in mini.ranks for portion in rank) / len(mini.ranks)
    return 1.0 - worked / spent


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_wait_less_when_pictures_are_weighed(world_size: int) -> None:
    by_tokens, by_cost = [], []
    for seed in range(20):
        for found, model in ((by_tokens, TOKENS_ONLY), (by_cost, COST)):
            plan = plan_update(skewed(64, seed), world_size=world_size, micro_batch_tokens=600, cost=model)
            found.append(waiting(plan.minibatches[0], COST))
    assert np.mean(by_cost) < np.mean(by_tokens)
    assert np.mean(by_cost) < 0.15


@given(seed=st.integers(0, 1000), world_size=st.integers(1, 4), count=st.integers(1, 60), budget=st.integers(50, 2000))
def test_a_weighed_plan_is_as_complete_and_even_as_any(seed: int, world_size: int, count: int, budget: int) -> None:
    items = skewed(count, seed)
    plan = plan_update(items, world_size=world_size, micro_batch_tokens=budget, minibatches=2, packing="auto", cost=COST)
    assert sorted(plan.items, key=lambda i: (i.group, i.trajectory)) == items
    for mini in plan.minibatches:
        assert len({len(rank) for rank in mini.ranks}) == 1
        work = [sum(COST.row(i.length, i.patches, i.pictures) for p in rank for i in p.items) for rank in mini.ranks]
        assert max(work) - min(work) <= max(COST.row(i.length, i.patches, i.pictures) for rank in mini.ranks for p in rank for i in p.items)
        for rank in mini.ranks:
            costs = [portion.cost(COST) for portion in rank]
            assert costs == sorted(costs, reverse=True)
            assert all(portion.tokens <= budget or len(portion.items) == 1 for portion in rank)


def test_the_plan_depends_on_its_arguments_alone() -> None:
    plans = [plan_update(skewed(40), world_size=3, micro_batch_tokens=500, cost=COST) for _ in range(2)]
    assert plans[0] == plans[1]
