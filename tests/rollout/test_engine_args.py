"""What vLLM is asked for, without an engine."""

from __future__ import annotations

import pytest

from mmsr_ray.config import load
from mmsr_ray.rollout.engine import engine_args


@pytest.mark.parametrize(("cards", "backend"), [(1, None), (4, "mp")])
def test_the_workers_of_an_engine_are_its_own(cards: int, backend: str | None) -> None:
    """Left to itself vLLM makes Ray actors of several, in whatever bundles the trial's placement group has."""
    settings = ["model.path=m", "data.train=a", "data.test=b", f"rollout.tensor_parallel={cards}", f"rollout.gpus_per_runner={cards}"]
    args = engine_args(load(None, settings), None, seed=0)
    assert (args.tensor_parallel_size, args.distributed_executor_backend) == (cards, backend)
