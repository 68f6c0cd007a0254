"""The policy loss and the SFT loss over the sampled tokens of one micro-batch. Pure torch.

Promise: normalisers are global. A micro-batch's loss is its share of the mini-batch's loss, so the sum over all
micro-batches of all ranks, and with it the gradient, does not depend on how the mini-batch was cut.

Everything is flat: S sampled tokens, with the number of the row (an answer) each belongs to. Every algorithm is one
`Objective`: its ratio, its clip and its correction are in `ratios`, its KL term in `kl`, its mean in `token_weights`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmsr_ray.learner.kl import kl_per_token
from mmsr_ray.learner.objective import Aggregate, Objective
from mmsr_ray.learner.ratios import correction, log_ratio, surrogate


@dataclass(frozen=True, slots=True)
class LossInputs:
    """float32 [S] where not said otherwise. Natural logarithms."""

    logprobs: torch.Tensor  # of the weights being trained, with gradient
    old_logprobs: torch.Tensor  # of the weights at the start of the update, by the trainer
    rollout_logprobs: torch.Tensor  # of the engine that sampled
    advantages: torch.Tensor
    weights: torch.Tensor  # of each token in the mini-batch's mean (`token_weights`)
    rows: torch.Tensor  # int64 [S], the row of each token
    tokens_per_row: torch.Tensor  # int64 [B]
    share: float  # 1 / sampled tokens of the mini-batch: what is measured is a mean over tokens, whatever the loss is
    reference: torch.Tensor | None = None  # of the frozen model; None without KL
    entropy: torch.Tensor | None = None  # with gradient when entropy_coef > 0


@dataclass(frozen=True, slots=True)
class LossOutputs:
    """`loss` is a scalar with gradient. `sums` add up over micro-batches, `maxima` are to be maximised."""

    loss: torch.Tensor
    sums: dict[str, torch.Tensor]
    maxima: dict[str, torch.Tensor]


def token_weights(
    rows: torch.Tensor,
    tokens_per_row: torch.Tensor,
    *,
    aggregate: Aggregate,
    total_tokens: int,
    total_rows: int,
    constant_length: int = 1,
) -> torch.Tensor:
    """Weight of each sampled token in the mini-batch's mean: float32 [S].

    token: 1 / all sampled tokens (DAPO's equation 12, and the original's code). sequence: the mean within each answer,
    then over answers (GRPO's equation 3). constant: 1 / (answers * constant_length), Dr. GRPO, in which a long answer
    counts for more, in proportion to its tokens.

    Args:
        rows: int64 [S], row of each token.
        tokens_per_row: int64 [B], sampled tokens of each row.
        total_tokens, total_rows: of the whole mini-batch, over all ranks.
    """
    if aggregate is Aggregate.SEQUENCE:
        per_row = 1.0 / (tokens_per_row.clamp(min=1).float() * max(total_rows, 1))
        return per_row[rows]
    divisor = total_tokens if aggregate is Aggregate.TOKEN else total_rows * constant_length
    return torch.full(rows.shape, 1.0 / max(divisor, 1), device=rows.device)


def policy_loss(inputs: LossInputs, objective: Objective) -> LossOutputs:
    """Minus the corrected, clipped surrogate, plus the KL term, minus the entropy bonus.

    The surrogate's ratio is against the trainer's own log-probs at the start of the update. The mismatch between
    trainer and engine, and the staleness of tokens sampled by older weights, enter as the correction's detached weight.
    """
    rows, counts = inputs.rows, inputs.tokens_per_row
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, objective.ratio, rows, counts).exp()
    value, clipped = surrogate(ratio, inputs.logprobs, inputs.advantages, objective)
    corrected = correction(inputs.old_logprobs, inputs.rollout_logprobs, objective, rows, counts)
    policy = -(corrected * value * inputs.weights).sum()
    loss = policy
    mismatch = (inputs.old_logprobs - inputs.rollout_logprobs).detach().abs()
    sums = {
        "policy_loss": policy.detach(),
        "clip_fraction": clipped.sum() * inputs.share,
        "mismatch_abs_mean": mismatch.sum() * inputs.share,
        "correction_mean": corrected.sum() * inputs.share,
        "correction_masked": (corrected == 0).sum() * inputs.share,
    }
    if inputs.reference is not None:
        kl = kl_per_token(inputs.logprobs, inputs.reference, inputs.old_logprobs, objective.kl_kind, objective.kl_gradient)
        loss = loss + objective.kl_coef * (kl * inputs.weights).sum()
        sums["kl"] = kl.detach().sum() * inputs.share
    if inputs.entropy is not None:
        if objective.entropy_coef:
            loss = loss - objective.entropy_coef * (inputs.entropy * inputs.weights).sum()
        sums["entropy"] = inputs.entropy.detach().sum() * inputs.share
    sums["loss"] = loss.detach()
    return LossOutputs(loss=loss, sums=sums, maxima={"mismatch_max": _max_or_zero(mismatch)})


def sft_loss(inputs: LossInputs) -> LossOutputs:
    """Cross-entropy of the demonstrated tokens, each weighted by its sequence's advantage (1 in plain SFT)."""
    loss = -(inputs.logprobs * inputs.advantages * inputs.weights).sum()
    sums = {"loss": loss.detach(), "policy_loss": loss.detach()}
    if inputs.entropy is not None:
        sums["entropy"] = inputs.entropy.detach().sum() * inputs.share
    return LossOutputs(loss=loss, sums=sums, maxima={})


def _max_or_zero(values: torch.Tensor) -> torch.Tensor:
    return values.max() if values.numel() else values.new_zeros(())
