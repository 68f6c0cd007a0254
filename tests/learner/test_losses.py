from __future__ import annotations

import math

import pytest
import torch

from mmsr_ray.config import LossConfig
from mmsr_ray.learner.losses import LossInputs, grpo_loss, k3, sft_loss, token_weights


def inputs(logprobs: list[float], old: list[float], rollout: list[float], advantages: list[float], **more: torch.Tensor) -> LossInputs:
    return LossInputs(
        logprobs=torch.tensor(logprobs, requires_grad=True),
        old_logprobs=torch.tensor(old),
        rollout_logprobs=torch.tensor(rollout),
        advantages=torch.tensor(advantages),
        weights=torch.full((len(logprobs),), 1 / len(logprobs)),
        **more,
    )


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    x = inputs([-1.0, -2.0], [-1.0, -2.0], [-1.0, -2.0], [1.0, -0.5])
    out = grpo_loss(x, LossConfig(kl_coef=0.0))
    out.loss.backward()
    torch.testing.assert_close(x.logprobs.grad, torch.tensor([-0.5, 0.25]))
    assert out.sums["clip_fraction"] == 0
    assert out.sums["tis_mean"] == 1


def test_clipping_stops_the_gradient_on_the_right_side_only() -> None:
    # ratio 1.5: clipped for a positive advantage, not for a negative one; ratio 0.5: the other way round
    log = math.log
    x = inputs([log(1.5), log(1.5), log(0.5), log(0.5)], [0.0] * 4, [0.0] * 4, [1.0, -1.0, 1.0, -1.0])
    out = grpo_loss(x, LossConfig(kl_coef=0.0))
    out.loss.backward()
    torch.testing.assert_close(x.logprobs.grad, torch.tensor([0.0, 1.5, -0.5, 0.0]) / 4)
    assert out.sums["clip_fraction"] == 0.5
    assert out.loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4)


def test_asymmetric_clip() -> None:
    x = inputs([math.log(1.25)], [0.0], [0.0], [1.0])
    assert grpo_loss(x, LossConfig(clip_high=0.28)).sums["clip_fraction"] == 0
    assert grpo_loss(x, LossConfig(clip_high=0.2)).sums["clip_fraction"] == 1


def test_k3_is_exact_and_not_negative() -> None:
    p, q = torch.tensor([-1.0, -0.3]), torch.tensor([-1.2, -0.1])
    torch.testing.assert_close(k3(p, q), torch.exp(q - p) - (q - p) - 1)
    assert (k3(torch.randn(100), torch.randn(100)) >= 0).all()
    assert k3(p, p).abs().max() == 0


def test_kl_enters_with_its_coefficient() -> None:
    reference = torch.tensor([-2.0])
    free = grpo_loss(inputs([-1.0], [-1.0], [-1.0], [0.0]), LossConfig())
    held = grpo_loss(inputs([-1.0], [-1.0], [-1.0], [0.0], reference=reference), LossConfig(kl_coef=0.5))
    assert free.loss == 0
    assert held.loss.item() == pytest.approx(0.5 * math.exp(-1.0))
    assert held.sums["kl"].item() == pytest.approx(math.exp(-1.0))


def test_truncated_importance_sampling_weighs_by_the_mismatch() -> None:
    old, rollout = [-1.0, -1.0, -1.0], [-1.0 - math.log(1.5), -1.0 - math.log(9.0), -1.0 + math.log(2.0)]
    x = inputs(old, old, rollout, [1.0, 1.0, 1.0])
    out = grpo_loss(x, LossConfig(kl_coef=0.0, tis_cap=2.0))
    out.loss.backward()
    torch.testing.assert_close(x.logprobs.grad, -torch.tensor([1.5, 2.0, 0.5]) / 3)
    assert out.maxima["mismatch_max"].item() == pytest.approx(math.log(9.0))
    off = grpo_loss(x, LossConfig(kl_coef=0.0, tis_cap=0.0))
    assert off.sums["tis_mean"].item() == pytest.approx(1.0)


def test_entropy_bonus_lowers_the_loss() -> None:
    entropy = torch.tensor([2.0], requires_grad=True)
    out = grpo_loss(inputs([-1.0], [-1.0], [-1.0], [0.0], entropy=entropy), LossConfig(entropy_coef=0.01))
    out.loss.backward()
    assert entropy.grad is not None
    assert entropy.grad.item() == pytest.approx(-0.01)
    assert out.sums["entropy"] == 2.0


def test_absurd_ratios_stay_finite() -> None:
    x = inputs([0.0, -1e4], [-1e4, 0.0], [0.0, -1e4], [1.0, -1.0], reference=torch.tensor([-1e4, 0.0]))
    out = grpo_loss(x, LossConfig())
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert x.logprobs.grad is not None
    assert torch.isfinite(x.logprobs.grad).all()


def test_weights_by_token_and_by_sequence() -> None:
    rows, counts = torch.tensor([0, 0, 0, 1]), torch.tensor([3, 1])
    by_token = token_weights(rows, counts, aggregate="token", total_tokens=8, total_sequences=4)
    torch.testing.assert_close(by_token, torch.full((4,), 1 / 8))
    by_sequence = token_weights(rows, counts, aggregate="sequence", total_tokens=8, total_sequences=4)
    torch.testing.assert_close(by_sequence, torch.tensor([1 / 12, 1 / 12, 1 / 12, 1 / 4]))
    with pytest.raises(ValueError, match="aggregate"):
        token_weights(rows, counts, aggregate="batch", total_tokens=8, total_sequences=4)


def test_sft_is_weighted_cross_entropy() -> None:
    x = inputs([-1.0, -3.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0])
    out = sft_loss(x)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(2.0)
    torch.testing.assert_close(x.logprobs.grad, torch.tensor([-0.5, -0.5]))


def test_an_empty_micro_batch_has_a_loss_of_zero() -> None:
    for out in (grpo_loss(inputs_empty(), LossConfig()), sft_loss(inputs_empty())):
        assert out.loss == 0


def inputs_empty() -> LossInputs:
    nothing = torch.empty(0)
    return LossInputs(nothing.clone().requires_grad_(), nothing, nothing, nothing, nothing)
