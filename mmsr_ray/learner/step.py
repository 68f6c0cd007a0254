"""What one micro-batch contributes to one optimiser step: the part of an update that knows no ranks.

Promise: the sum of `contribution(...).loss` over all micro-batches of a mini-batch is that mini-batch's loss. A loop
that calls it and `backward()` for every portion, then steps, trains exactly as the DeepSpeed ranks do; `fit` is that
loop for one process with torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from mmsr_ray.learner.batch import MicroBatch, Row, collate
from mmsr_ray.learner.losses import LossInputs, LossOutputs, policy_loss, sft_loss, token_weights
from mmsr_ray.learner.model import Entropy, Policy, PolicyOutput
from mmsr_ray.learner.objective import Aggregate, Objective
from mmsr_ray.learner.pictures import PatchCache
from mmsr_ray.learner.plan import Item, MiniBatch, Portion, UpdatePlan

RowOf = Callable[[Item], Row]
Scorer = Callable[..., PolicyOutput]  # a Policy, or the engine that wraps one


def collate_portion(portion: Portion, row_of: RowOf, policy: Policy, cache: PatchCache) -> MicroBatch:
    """Tensors of one portion, on the CPU."""
    return collate([row_of(item) for item in portion.items], packed=portion.packed, ids=policy.token_ids, cache=cache)


def score(policy: Scorer, batch: MicroBatch, temperature: float) -> torch.Tensor:
    """Log-probs of the batch's sampled tokens without gradient: float32 [S]."""
    with torch.no_grad():
        return policy(batch, temperature).logprobs


def contribution(
    policy: Scorer,
    batch: MicroBatch,
    mini: MiniBatch,
    *,
    objective: Objective | None,
    temperature: float,
    old: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
) -> LossOutputs:
    """This micro-batch's share of the mini-batch's loss, with gradient. A loss that is not finite has no finite gradient.

    Args:
        objective: of reinforcement learning; None is supervised learning, which scores at temperature 1.
        temperature: the rollout's.
        old: float32 [S], log-probs at the start of the update; None when this step is the first of its update, where
            they equal the current ones.
        reference: float32 [S], log-probs of the frozen model; None leaves the KL term out.
    """
    if objective is None:
        output = policy(batch, 1.0, Entropy.NONE)
        return _poisoned(sft_loss(_inputs(batch, mini, output, None, old, reference)), output.logprobs)
    output = policy(batch, temperature, Entropy.TRAINED if objective.entropy_coef else Entropy.MEASURED)
    return _poisoned(policy_loss(_inputs(batch, mini, output, objective, old, reference), objective), output.logprobs)


def _inputs(
    batch: MicroBatch,
    mini: MiniBatch,
    output: PolicyOutput,
    objective: Objective | None,
    old: torch.Tensor | None,
    reference: torch.Tensor | None,
) -> LossInputs:
    weights = token_weights(
        batch.row_of_token,
        batch.tokens_per_row,
        aggregate=Aggregate.TOKEN if objective is None else objective.aggregate,
        total_tokens=mini.sampled_tokens,
        total_rows=mini.sequences,
        constant_length=1 if objective is None else objective.constant_length,
    )
    return LossInputs(
        logprobs=output.logprobs,
        old_logprobs=output.logprobs.detach() if old is None else old,
        rollout_logprobs=batch.rollout_logprobs,
        advantages=batch.advantages,
        weights=weights,
        rows=batch.row_of_token,
        tokens_per_row=batch.tokens_per_row,
        share=1.0 / max(mini.sampled_tokens, 1),
        reference=reference,
        entropy=output.entropy,
    )


def _poisoned(out: LossOutputs, logprobs: torch.Tensor) -> LossOutputs:
    """A clamp may hide from the gradient what is not finite in the loss: the step must be skipped all the same."""
    return replace(out, loss=out.loss + torch.where(torch.isfinite(out.loss.detach()), 0.0, torch.nan) * logprobs.sum())


def fit(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    plans: Iterator[tuple[UpdatePlan, Sequence[Sequence[Row]]]],
    cache: PatchCache,
    *,
    grad_clip: float = 1.0,
    device: torch.device | None = None,
    autocast: torch.dtype | None = None,
) -> Iterator[dict[str, float]]:
    """Supervised training in one process with torch alone (world_size 1), one dict of metrics per optimiser step.

    `plans` yields a plan and its rows, `rows[item.group][item.trajectory]`, whose advantages the plan's items override.
    Lazily: it goes on as it is consumed.
    """
    device = device or torch.device("cpu")
    for plan, rows in plans:
        for mini in plan.minibatches:
            sums: dict[str, torch.Tensor] = {}
            for portion in mini.ranks[0]:

                def row_of(item: Item, rows: Sequence[Sequence[Row]] = rows) -> Row:
                    return Row(rows[item.group][item.trajectory].tokens, item.advantage)

                batch = collate_portion(portion, row_of, policy, cache).to(device)
                with torch.autocast(device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
                    out = contribution(policy, batch, mini, objective=None, temperature=1.0)
                out.loss.backward()
                for name, value in out.sums.items():
                    sums[name] = sums[name] + value if name in sums else value
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), grad_clip)
            for group in optimizer.param_groups:
                group["lr"] = plan.lr
            if torch.isfinite(norm):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield {name: float(value) for name, value in sums.items()} | {
                "grad_norm": float(norm),
                "lr": plan.lr,
                "skipped": float(not torch.isfinite(norm)),
            }
