"""GRPO and SFT losses over the sampled tokens of one micro-batch. Pure torch.

Promise: normalisers are global. A micro-batch's loss is its share of the mini-batch's loss, so the sum over all
micro-batches of all ranks, and with it the gradient, does not depend on how the mini-batch was cut.

Everything is flat: S sampled tokens, with the number of the sequence each belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # the settings' loader needs more than torch
    from mmsr_ray.config import LossConfig

LOG_RATIO_LIMIT = 20.0  # exp(20) is already absurd; keeps a broken log-prob from turning the batch into inf


@dataclass(frozen=True, slots=True)
class LossInputs:
    """All float32 [S], except `entropy` (may be None) and `reference` (None without KL). Natural logarithms."""

    logprobs: torch.Tensor  # of the weights being trained, with gradient
    old_logprobs: torch.Tensor  # of the weights at the start of the update, by the trainer
    rollout_logprobs: torch.Tensor  # of the engine that sampled
    advantages: torch.Tensor
    weights: torch.Tensor  # 1 / normaliser of each token: sums to one over the mini-batch
    reference: torch.Tensor | None = None  # of the frozen model
    entropy: torch.Tensor | None = None  # with gradient when entropy_coef > 0


@dataclass(frozen=True, slots=True)
class LossOutputs:
    """`loss` is a scalar with gradient. `sums` add up over micro-batches, `maxima` are to be maximised."""

    loss: torch.Tensor
    sums: dict[str, torch.Tensor]
    maxima: dict[str, torch.Tensor]


def token_weights(
    sequence_of_token: torch.Tensor, tokens_per_sequence: torch.Tensor, *, aggregate: str, total_tokens: int, total_sequences: int
) -> torch.Tensor:
    """Weight of each sampled token in the mini-batch's mean.

    Args:
        sequence_of_token: int64 [S], row of each token.
        tokens_per_sequence: int64 [B], sampled tokens of each row.
        aggregate: "token" (mean over all sampled tokens, as in the original's code) or "sequence" (mean within each
            rollout, then over rollouts, as in the paper's equation 2).
        total_tokens, total_sequences: of the whole mini-batch, over all ranks.

    Returns:
        float32 [S].
    """
    if aggregate == "token":
        return torch.full(sequence_of_token.shape, 1.0 / max(total_tokens, 1), device=sequence_of_token.device)
    if aggregate == "sequence":
        per_sequence = 1.0 / (tokens_per_sequence.clamp(min=1).float() * max(total_sequences, 1))
        return per_sequence[sequence_of_token]
    raise ValueError(f"aggregate {aggregate!r}: choose token or sequence")


def k3(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Low-variance, unbiased, non-negative estimate of KL(policy || reference) per token (Schulman's k3)."""
    difference = (reference - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(difference) - difference


def grpo_loss(inputs: LossInputs, config: LossConfig) -> LossOutputs:
    """Clipped surrogate (arXiv 2402.03300) with k3 KL, optional entropy bonus and truncated importance sampling.

    The surrogate's ratio is against the trainer's own log-probs at the start of the update; the mismatch between
    trainer and engine, and the staleness of tokens sampled by older weights, enter as a detached weight
    min(exp(old - rollout), tis_cap) (truncated importance sampling), switched off by tis_cap = 0.
    """
    log_ratio = (inputs.logprobs - inputs.old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    mismatch = (inputs.old_logprobs - inputs.rollout_logprobs).detach()
    importance = torch.ones_like(mismatch)
    if config.tis_cap > 0:
        importance = mismatch.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp(max=config.tis_cap)
    weights = inputs.weights
    policy_loss = -(importance * surrogate * weights).sum()
    loss = policy_loss
    sums = {
        "policy_loss": policy_loss.detach(),
        "clip_fraction": ((clipped * inputs.advantages < ratio * inputs.advantages).float() * weights).sum(),
        "mismatch_abs_mean": (mismatch.abs() * weights).sum(),
        "tis_mean": (importance * weights).sum(),
    }
    if inputs.reference is not None:
        kl = (k3(inputs.logprobs, inputs.reference) * weights).sum()
        loss = loss + config.kl_coef * kl
        sums["kl"] = kl.detach()
    if inputs.entropy is not None:
        entropy = (inputs.entropy * weights).sum()
        if config.entropy_coef:
            loss = loss - config.entropy_coef * entropy
        sums["entropy"] = entropy.detach()
    sums["loss"] = loss.detach()
    return LossOutputs(loss=loss, sums=sums, maxima={"mismatch_max": _max_or_zero(mismatch.abs())})


def sft_loss(inputs: LossInputs) -> LossOutputs:
    """Cross-entropy of the demonstrated tokens, each weighted by its sequence's advantage (1 in plain SFT)."""
    loss = -(inputs.logprobs * inputs.advantages * inputs.weights).sum()
    sums = {"loss": loss.detach(), "policy_loss": loss.detach()}
    if inputs.entropy is not None:
        sums["entropy"] = (inputs.entropy.detach() * inputs.weights).sum()
    return LossOutputs(loss=loss, sums=sums, maxima={})


def _max_or_zero(values: torch.Tensor) -> torch.Tensor:
    return values.max() if values.numel() else values.new_zeros(())
