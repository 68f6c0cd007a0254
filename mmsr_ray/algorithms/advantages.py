"""Group advantages of GRPO (spec §4.3). Pure functions over numbers.

Invariant: an advantage depends on the rewards of its own group and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmsr_ray.types import TrajectorySummary

EPSILON = 1e-6


def group_advantages(rewards: Sequence[float], *, denormalise: bool = False) -> np.ndarray:
    """Advantages of the rollouts of one prompt, float64 [G].

    (r - mean) / (std + 1e-6) with the unbiased standard deviation; with `denormalise` the division is left out
    (Dr. GRPO). A group of one has no baseline: mean 0 and std 1 are taken, as the original does.
    Raises ValueError for an empty group or a reward that is not finite.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"a group needs a flat list of at least one reward, got shape {values.shape}")
    if not np.all(np.isfinite(values)):
        raise ValueError(f"rewards must be finite, got {values.tolist()}")
    if values.size == 1:
        return values / (1.0 + EPSILON)
    centred = values - values.mean()
    return centred if denormalise else centred / (values.std(ddof=1) + EPSILON)


def carries_signal(trajectories: Sequence[TrajectorySummary]) -> bool:
    """Whether raw correctness varies within the group.

    Correctness and not the reward is asked: format and search penalties make the reward of an all-wrong group vary,
    and training on such groups teaches format at the expense of answers.
    """
    return len({t.correct for t in trajectories}) > 1
