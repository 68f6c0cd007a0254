"""What vLLM is told at an engine's start, and what its release makes of what it is not told. No engine starts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from vllm.engine import arg_utils
from vllm.usage.usage_lib import UsageContext

from mmsr_ray.config import load
from mmsr_ray.rollout.engine import engine_args


@pytest.mark.parametrize(("cards", "executor"), [(1, None), (4, "mp")])
def test_the_workers_of_an_engine_are_its_own_processes(cards: int, executor: str | None) -> None:
    """Left to itself vLLM makes Ray actors of several, in the trial's placement group, whose cards the runner has."""
    settings = ["model.path=m", "data.train=a", "data.test=b", f"rollout.tensor_parallel={cards}", f"rollout.gpus_per_runner={cards}"]
    args = engine_args(load(None, settings), None, seed=0)
    assert (args.tensor_parallel_size, args.distributed_executor_backend) == (cards, executor)


def test_steps_on_a_large_card_have_room_for_prompts_only_by_offline_use(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(
        get_device_total_memory=lambda: 80 << 30,
        get_device_name=lambda: "NVIDIA H100 80GB HBM3",
        is_tpu=lambda: False,
        is_cpu=lambda: False,
    )
    monkeypatch.setattr(arg_utils, "current_platform", card)
    tokens, _ = arg_utils.EngineArgs.get_batch_defaults(1)
    assert tokens[UsageContext.LLM_CLASS] == 16_384
    assert UsageContext.ENGINE_CONTEXT not in tokens, "then vLLM takes its least, 2,048"
