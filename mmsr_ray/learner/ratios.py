"""Probability ratios between two policies at the levels of a token and of a whole answer, and what clips them. Pure torch.

Promise: finite for any finite log-probs. A ratio of a whole answer needs all its sampled tokens: a plan never splits a
row over micro-batches, so their sum is at hand.

S sampled tokens of B rows. Letters cite the papers listed in `objective`.
"""

from __future__ import annotations

import torch

from mmsr_ray.learner.objective import Clip, Correction, Level, Objective

LOG_RATIO_LIMIT = 20.0  # exp(20) is already absurd; keeps a broken log-prob from turning the batch into inf


def log_ratio(
    numerator: torch.Tensor, denominator: torch.Tensor, level: Level, rows: torch.Tensor, tokens_per_row: torch.Tensor
) -> torch.Tensor:
    """log(numerator / denominator) of each token's own ratio, or of its answer's: float32 [S], within the limit.

    Args:
        numerator, denominator: float32 [S], log-probs.
        level: `token`; `sequence`, the mean over the answer's tokens (S, equation 7); `trajectory`, their sum.
        rows: int64 [S], row of each token.
        tokens_per_row: int64 [B].
    """
    single = (numerator - denominator).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if level is Level.TOKEN:
        return single
    whole = torch.zeros(tokens_per_row.shape, dtype=single.dtype, device=single.device).index_add(0, rows, single)
    if level is Level.SEQUENCE:
        whole = whole / tokens_per_row.clamp(min=1)
    return whole.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)[rows]


def surrogate(
    ratio: torch.Tensor, logprobs: torch.Tensor, advantages: torch.Tensor, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is to be maximised, per token, and whether clipping took hold of it: float32 and bool [S].

    clip=surrogate: min(r A, clip(r) A) (G, equation 3), with a dual clip at least c A where A < 0 (U).
    clip=weight: clip(r) A log p with the weight detached (C): a clipped token keeps its gradient.
    """
    clipped = ratio.clamp(1.0 - objective.clip_low, 1.0 + objective.clip_high)
    if objective.clip is Clip.WEIGHT:
        return clipped.detach() * advantages * logprobs, clipped != ratio
    free = ratio * advantages
    value = torch.minimum(free, clipped * advantages)
    if objective.dual_clip:
        value = torch.where(advantages < 0, torch.maximum(value, objective.dual_clip * advantages), value)
    return value, value != free


def correction(
    old: torch.Tensor, rollout: torch.Tensor, objective: Objective, rows: torch.Tensor, tokens_per_row: torch.Tensor
) -> torch.Tensor:
    """Weight of each token for exp(old - rollout), the trainer's policy at the start of the update over what sampled: [S].

    It corrects for the engine's other arithmetic and for weights that were older (spec of staleness). truncate:
    min(w, high) (T). mask: w where it lies within [low, high], else 0 (I). Masked tokens stay in the normaliser.
    """
    if objective.correction is Correction.NONE:
        return torch.ones_like(old)
    weight = log_ratio(old, rollout, objective.correction_level, rows, tokens_per_row).detach().exp()
    if objective.correction is Correction.TRUNCATE:
        return weight.clamp(max=objective.correction_high)
    return weight * ((weight >= objective.correction_low) & (weight <= objective.correction_high))
