"""Everything random in a process, so that a checkpoint can hold it.

The policy has no dropout and rollouts are seeded by what they are, so nothing of a default run draws from these while it
trains. A model whose own config asks for dropout does, and its resumed steps are then those of a run that never stopped.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """State of Python's, NumPy's and torch's generators, that of the current CUDA device included where there is one."""
    state: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
