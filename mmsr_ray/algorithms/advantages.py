"""Group advantages (spec §4.2). Pure functions over numbers.

Invariant: an advantage depends on the rewards of its own group and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmsr_ray.learner.objective import Baseline, Normalise
from mmsr_ray.types import TrajectorySummary

EPSILON = 1e-6


def group_advantages(rewards: Sequence[float], *, baseline: Baseline = Baseline.MEAN, normalise: Normalise = Normalise.STD) -> np.ndarray:
    """Advantages of the rollouts of one prompt, float64 [G].

    r - baseline, divided by std + 1e-6 with normalise=std, where std is the group's unbiased standard deviation (GRPO);
    normalise=none leaves the division out (Dr. GRPO, arXiv 2503.20783). The baseline is the mean of the group, or with
    leave_one_out that of the others (RLOO, arXiv 2402.14740), which is G / (G - 1) times as far away. A group of one has
    no baseline: mean 0 and std 1 are taken, as the original does.
    Raises ValueError for an empty group or a reward that is not finite.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"a group needs a flat list of at least one reward, got shape {values.shape}")
    if not np.all(np.isfinite(values)):
        raise ValueError(f"rewards must be finite, got {values.tolist()}")
    size = values.size
    if size == 1:
        return values / (1.0 + EPSILON) if normalise is Normalise.STD else values
    centred = values - values.mean()
    if baseline is Baseline.LEAVE_ONE_OUT:
        centred = centred * (size / (size - 1))
    return centred / (values.std(ddof=1) + EPSILON) if normalise is Normalise.STD else centred


def carries_signal(trajectories: Sequence[TrajectorySummary]) -> bool:
    """Whether raw correctness varies within the group.

    Correctness and not the reward is asked: format and search penalties make the reward of an all-wrong group vary,
    and training on such groups teaches format at the expense of answers.
    """
    return len({t.correct for t in trajectories}) > 1
