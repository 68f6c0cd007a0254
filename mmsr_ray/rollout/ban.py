"""Tokens that an engine never samples, taken out of every row of logits at once. For vLLM's model runner V1, which CPUs have.

`logit_bias` says the same for each request, and vLLM then scatters it row by row: of a small model's step on a CPU that is a sixth
(measured). vLLM loads it by its name in the engine's process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.sample.logits_processor.interface import LogitsProcessor

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

_KEY = "mmsr_banned_ids"


def engine_arguments(banned: Sequence[int]) -> dict[str, Any]:
    """What vLLM's engine arguments need besides."""
    return {"logits_processors": [f"{__name__}:{Ban.__name__}"], "additional_config": {_KEY: list(banned)}}


class Ban(LogitsProcessor):
    """Bans the ids of `engine_arguments`."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        given: Any = vllm_config.additional_config
        self._ids = torch.tensor(given[_KEY], dtype=torch.int64, device=device)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """The same for all requests."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 [requests, vocabulary], changed in place."""
        return logits.index_fill_(1, self._ids, float("-inf"))
