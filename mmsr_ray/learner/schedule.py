"""Learning-rate schedules: pure functions of the step.

Promise: `learning_rate` is never negative and depends on its arguments alone, so that a resumed run goes on exactly.
"""

from __future__ import annotations

import math


def sigmoid_factor(step: int, *, decay_ratio: float, decay_at: int) -> float:
    """The original's decay (spec §4.2): near 1 until `decay_at`, halfway there, then `1 - decay_ratio`."""
    low = 1.0 - decay_ratio
    steepness = 1.0 / (0.1 * decay_at)
    exponent = min(steepness * (step - decay_at), 700.0)  # exp overflows beyond
    return (1.0 - low) / (1.0 + math.exp(exponent)) + low


def cosine_factor(step: int, *, steps: int) -> float:
    """From 1 at step 0 to 0 at `steps`; 0 beyond."""
    return 0.5 * (1.0 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))


def learning_rate(
    step: int, *, base: float, schedule: str, steps: int, warmup_steps: int = 0, decay_ratio: float = 0.95, decay_at: int = 45
) -> float:
    """Learning rate of optimiser step `step` (from 0) of `steps`.

    The first `warmup_steps` rise linearly from base / warmup_steps to base; cosine then runs over the rest.

    Raises:
        ValueError: unknown schedule.
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if schedule == "constant":
        return base
    if schedule == "cosine":
        return base * cosine_factor(step - warmup_steps, steps=max(steps - warmup_steps, 1))
    if schedule == "sigmoid":
        return base * sigmoid_factor(step, decay_ratio=decay_ratio, decay_at=decay_at)
    raise ValueError(f"schedule {schedule!r}: choose sigmoid, cosine or constant")
