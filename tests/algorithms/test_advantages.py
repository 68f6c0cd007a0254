from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.algorithms.advantages import carries_signal, group_advantages
from tests.algorithms.values import summary


def test_matches_the_formula_by_hand() -> None:
    assert group_advantages([1.0, 0.0, 0.0, 1.0]) == pytest.approx(np.array([0.5, -0.5, -0.5, 0.5]) / (np.sqrt(1 / 3) + 1e-6))
    assert group_advantages([1.0, 0.0], denormalise=True).tolist() == [0.5, -0.5]
    assert group_advantages([0.7]).tolist() == pytest.approx([0.7])


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=16))
def test_sums_to_zero_and_stays_finite(rewards: list[float]) -> None:
    values = group_advantages(rewards)
    assert np.all(np.isfinite(values))
    assert abs(values.sum()) < 1e-6 * max(1.0, np.abs(values).max()) * len(rewards)


def test_refuses_empty_groups_and_rewards_that_are_not_numbers() -> None:
    with pytest.raises(ValueError, match="at least one"):
        group_advantages([])
    with pytest.raises(ValueError, match="finite"):
        group_advantages([1.0, float("nan")])


def test_filtering_looks_at_correctness_and_not_at_shaped_reward() -> None:
    assert not carries_signal([summary(reward=0.1, correct=False), summary(reward=0.0, correct=False)])
    assert carries_signal([summary(reward=0.5, correct=False), summary(reward=0.5, correct=True)])
