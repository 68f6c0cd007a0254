"""How far log-probs of the same tokens lie apart: two layouts, two batch sizes, learner and engine. Torch and transformers alone.

Promise: what is compared are the same weights and the same rows; a difference is one of arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mmsr_ray.learner.batch import Row, collate
from mmsr_ray.learner.model import Policy
from mmsr_ray.learner.pictures import PatchCache


@dataclass(frozen=True, slots=True)
class Differences:
    """Of |log p - log q| over sampled tokens, in natural units."""

    tokens: int
    mean: float
    p99: float
    max: float

    @staticmethod
    def of(left: torch.Tensor, right: torch.Tensor) -> Differences:
        """Raises ValueError where there is nothing to compare, or two different things."""
        if left.shape != right.shape or not left.numel():
            raise ValueError(f"log-probs of {tuple(left.shape)} and {tuple(right.shape)} tokens cannot be compared")
        apart = (left.double().cpu() - right.double().cpu()).abs()
        return Differences(apart.numel(), float(apart.mean()), float(torch.quantile(apart, 0.99)), float(apart.max()))


def logprobs(policy: Policy, rows: Sequence[Row], cache: PatchCache, device: torch.device, *, packed: bool) -> torch.Tensor:
    """float32 [S] of all rows in one batch."""
    with torch.no_grad():
        return policy(collate(list(rows), packed=packed, ids=policy.token_ids, cache=cache).to(device)).logprobs.cpu()


def one_by_one(policy: Policy, rows: Sequence[Row], cache: PatchCache, device: torch.device) -> torch.Tensor:
    return torch.cat([logprobs(policy, [row], cache, device, packed=False) for row in rows])


def learner_with_itself(policy: Policy, rows: Sequence[Row], cache: PatchCache, device: torch.device) -> dict[str, Any]:
    """Rows alone against rows together, padded against packed. In exact arithmetic both are nought."""
    together = logprobs(policy, rows, cache, device, packed=False)
    return {
        "packed_against_padded": asdict(Differences.of(together, logprobs(policy, rows, cache, device, packed=True))),
        "alone_against_together": asdict(Differences.of(together, one_by_one(policy, rows, cache, device))),
    }


def learner_with_engine(policy: Policy, rows: Sequence[Row], cache: PatchCache, device: torch.device) -> Differences:
    """Against the log-probs that the engine gave to what it sampled, which the rows carry (temperature 1)."""
    sampled = np.concatenate([_sampled(row) for row in rows])
    return Differences.of(one_by_one(policy, rows, cache, device), torch.from_numpy(sampled))


def _sampled(row: Row) -> np.ndarray:
    if row.tokens.logprobs is None:
        raise ValueError("a row of an evaluation carries no log-probs to compare with")
    return row.tokens.logprobs[row.tokens.loss_mask]
