from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.algorithms.advantages import carries_signal, group_advantages
from mmsr_ray.learner.objective import Baseline, Normalise
from tests.algorithms.values import summary

MEAN, OTHERS = Baseline.MEAN, Baseline.LEAVE_ONE_OUT
STD, NONE = Normalise.STD, Normalise.NONE
groups = st.lists(st.floats(-10, 10), min_size=2, max_size=16)


def test_matches_the_formula_by_hand() -> None:
    assert group_advantages([1.0, 0.0, 0.0, 1.0]) == pytest.approx(np.array([0.5, -0.5, -0.5, 0.5]) / (np.sqrt(1 / 3) + 1e-6))
    assert group_advantages([1.0, 0.0], normalise=NONE).tolist() == [0.5, -0.5]
    assert group_advantages([1.0, 0.0, 0.5], baseline=OTHERS, normalise=NONE).tolist() == pytest.approx([0.75, -0.75, 0.0])


@given(rewards=groups, baseline=st.sampled_from(Baseline), normalise=st.sampled_from(Normalise))
def test_every_baseline_against_a_loop(rewards: list[float], baseline: Baseline, normalise: Normalise) -> None:
    expected = []
    for i, reward in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != i]
        difference = reward - statistics.fmean(rewards if baseline is MEAN else others)
        expected.append(difference / (statistics.stdev(rewards) + 1e-6) if normalise is STD else difference)
    # the std of equal numbers is 0 or rounding: what the 1e-6 leaves of a rounding error is no reference
    tolerance = 1e-6 if max(rewards) - min(rewards) > 1e-3 else 1e-2
    assert group_advantages(rewards, baseline=baseline, normalise=normalise) == pytest.approx(expected, rel=1e-6, abs=tolerance)


@given(rewards=groups, baseline=st.sampled_from(Baseline), normalise=st.sampled_from(Normalise))
def test_sums_to_zero_and_stays_finite(rewards: list[float], baseline: Baseline, normalise: Normalise) -> None:
    values = group_advantages(rewards, baseline=baseline, normalise=normalise)
    assert np.all(np.isfinite(values))
    assert abs(values.sum()) < 1e-6 * max(1.0, np.abs(values).max()) * len(rewards)


@pytest.mark.parametrize("baseline", Baseline)
@pytest.mark.parametrize("normalise", Normalise)
def test_equal_rewards_teach_nothing_and_one_survivor_has_no_baseline(baseline: Baseline, normalise: Normalise) -> None:
    assert np.abs(group_advantages([0.91] * 8, baseline=baseline, normalise=normalise)).max() < 1e-6
    assert group_advantages([0.7], baseline=baseline, normalise=normalise).tolist() == pytest.approx([0.7])
    assert group_advantages([0.0], baseline=baseline, normalise=normalise).tolist() == [0.0]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_refuses_empty_groups_and_rewards_that_are_not_numbers(broken: float) -> None:
    with pytest.raises(ValueError, match="at least one"):
        group_advantages([])
    with pytest.raises(ValueError, match="finite"):
        group_advantages([1.0, broken], baseline=OTHERS, normalise=NONE)


def test_filtering_looks_at_correctness_and_not_at_shaped_reward() -> None:
    assert not carries_signal([summary(reward=0.1, correct=False), summary(reward=0.0, correct=False)])
    assert not carries_signal([summary(reward=1.0, correct=True), summary(reward=0.91, correct=True)])
    assert carries_signal([summary(reward=0.5, correct=False), summary(reward=0.5, correct=True)])
    assert not carries_signal([summary(correct=True)])
