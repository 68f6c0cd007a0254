from __future__ import annotations

import itertools
import math
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr_ray.algorithms.advantages import group_advantages
from mmsr_ray.learner.kl import kl_per_token
from mmsr_ray.learner.losses import LossInputs, LossOutputs, policy_loss, sft_loss, token_weights
from mmsr_ray.learner.objective import KL, PRESETS, Aggregate, KLGradient, LossConfig, Objective, resolve
from tests.learner.slow_reference import Answer, Settings, loss_and_gradient

PLAIN = Objective(correction=resolve(LossConfig(correction="none"), 1).correction, kl_coef=0.0)


def objective(**words: Any) -> Objective:
    """As a user would ask for it."""
    return resolve(LossConfig(**{"kl_coef": 0.0, "correction": "none"} | words), longest=10)


def make_inputs(answers: list[Answer], o: Objective, *, total: int = 0, rows: int = 0, reference: bool = True) -> LossInputs:
    """One micro-batch of float64; `total` tokens and `rows` of the mini-batch it is a part of (0: it is the whole)."""
    counts = torch.tensor([len(a.now) for a in answers])
    row_of = torch.repeat_interleave(torch.arange(len(answers)), counts)
    flat = {name: torch.tensor([x for a in answers for x in getattr(a, name)], dtype=torch.float64) for name in ("now", "old", "rollout")}
    total, rows = total or int(counts.sum()), rows or len(answers)
    weights = token_weights(
        row_of, counts, aggregate=o.aggregate, total_tokens=total, total_rows=rows, constant_length=o.constant_length
    ).double()
    return LossInputs(
        logprobs=flat["now"].requires_grad_(),
        old_logprobs=flat["old"],
        rollout_logprobs=flat["rollout"],
        advantages=torch.tensor([a.advantage for a in answers], dtype=torch.float64)[row_of],
        weights=weights,
        rows=row_of,
        tokens_per_row=counts,
        share=1 / total,
        reference=torch.tensor([x for a in answers for x in a.reference], dtype=torch.float64) if reference else None,
    )


def run(answers: list[Answer], o: Objective, **how: Any) -> tuple[LossOutputs, torch.Tensor]:
    inputs = make_inputs(answers, o, **how)
    out = policy_loss(inputs, o)
    out.loss.backward()
    assert inputs.logprobs.grad is not None
    return out, inputs.logprobs.grad


def settings_of(o: Objective) -> Settings:
    return Settings(**{name: value for name, value in asdict(o).items() if name in Settings.__dataclass_fields__})


def one(now: list[float], old: list[float], advantage: float = 1.0, rollout: list[float] | None = None) -> Answer:
    return Answer(advantage, now, old, old if rollout is None else rollout, now)


logprob = st.floats(-4.0, -0.01)
answers_of = st.lists(
    st.integers(1, 5).flatmap(
        lambda n: st.builds(
            Answer,
            advantage=st.floats(-2, 2),
            now=st.lists(logprob, min_size=n, max_size=n),
            old=st.lists(logprob, min_size=n, max_size=n),
            rollout=st.lists(logprob, min_size=n, max_size=n),
            reference=st.lists(logprob, min_size=n, max_size=n),
        )
    ),
    min_size=1,
    max_size=4,
)
levels = ("token", "sequence", "trajectory")


# ---------------------------------------------------------------------------------------------------- against the papers


@settings(max_examples=200, deadline=None)
@given(
    answers=answers_of,
    ratio=st.sampled_from(levels),
    clip=st.sampled_from([{}, {"clip_high": 0.28}, {"dual_clip": 3.0}, {"clip": "weight", "clip_low": 1.0, "clip_high": 0.5}]),
    aggregate=st.sampled_from(["token", "sequence", "constant"]),
    correction=st.sampled_from(["none", "truncate", "mask"]),
    level=st.sampled_from(levels),
    kl=st.sampled_from([("k1", "unbiased"), *itertools.product(["k2", "k3"], ["direct", "unbiased"])]),
    kl_coef=st.sampled_from([0.0, 0.1]),
)
def test_every_combination_has_the_value_and_the_gradient_of_the_loops(
    answers: list[Answer], ratio: str, clip: dict, aggregate: str, correction: str, level: str, kl: tuple[str, str], kl_coef: float
) -> None:
    if ratio != "token" and level == "token":
        level = ratio
    o = objective(
        ratio=ratio,
        aggregate=aggregate,
        correction=correction,
        correction_level=level,
        kl_kind=kl[0],
        kl_gradient=kl[1],
        kl_coef=kl_coef,
        **clip,
    )
    out, gradient = run(answers, o)
    loss, expected = loss_and_gradient(answers, settings_of(o))
    assert out.loss.item() == pytest.approx(loss, rel=1e-6, abs=1e-6)
    flat = torch.tensor([x for row in expected for x in row], dtype=torch.float64)
    torch.testing.assert_close(gradient, flat, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_on_fresh_samples_is_the_policy_gradient_of_its_mean(preset: str) -> None:
    """Ratio 1, no mismatch, reference = policy: what is left is - advantage * weight, times |o| where the product is meant."""
    answers = [one([-1.0, -2.0, -0.5], [-1.0, -2.0, -0.5], 0.7), one([-0.3], [-0.3], -1.1)]
    o = resolve(LossConfig(preset=preset), longest=10)
    out, gradient = run(answers, o)
    per_token = {"token": [1 / 4] * 4, "sequence": [1 / 6] * 3 + [1 / 2], "constant": [1 / 20] * 4}[o.aggregate]
    times = [3.0, 3.0, 3.0, 1.0] if o.ratio == "trajectory" else [1.0] * 4
    advantages = [0.7, 0.7, 0.7, -1.1]
    expected = [-a * w * t for a, w, t in zip(advantages, per_token, times, strict=True)]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)
    assert out.sums["clip_fraction"] == 0
    assert out.sums["correction_mean"].item() == pytest.approx(1.0)


def test_rloo_is_reinforce_with_the_mean_of_the_others() -> None:
    """arXiv 2402.14740: 1/k sum_i (R_i - mean of the others) grad log p(y_i), log p of the whole answer."""
    rewards = [1.0, 0.0, 0.25]
    others = [0.125, 0.625, 0.5]
    answers = [one([-1.0] * n, [-1.0] * n, r - b) for n, r, b in zip((2, 1, 3), rewards, others, strict=True)]
    _, gradient = run(answers, resolve(LossConfig(preset="rloo", kl_coef=0.0), longest=10))
    expected = [-(r - b) / 3 for n, r, b in zip((2, 1, 3), rewards, others, strict=True) for _ in range(n)]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))


def test_gspo_ratio_is_the_geometric_mean_and_clips_the_whole_answer() -> None:
    o = objective(preset="gspo")
    _, inside = run([one([-1.0, -1.0], [-1.3, -0.7])], o)  # ratios e^0.3 and e^-0.3: their geometric mean is 1
    torch.testing.assert_close(inside, torch.tensor([-0.5, -0.5], dtype=torch.float64))
    out, outside = run([one([-1.0, -1.0], [-1.01, -1.01])], o)  # e^0.01 is above 1 + 4e-4
    assert outside.abs().max() == 0
    assert out.sums["clip_fraction"] == 1


def test_clipping_stops_the_gradient_on_the_right_side_only() -> None:
    # ratio 1.5: clipped for a positive advantage, not for a negative one; ratio 0.5: the other way round
    log = math.log
    answers = [one([log(1.5)], [0.0]), one([log(1.5)], [0.0], -1.0), one([log(0.5)], [0.0]), one([log(0.5)], [0.0], -1.0)]
    out, gradient = run(answers, PLAIN)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 1.5, -0.5, 0.0], dtype=torch.float64) / 4)
    assert out.sums["clip_fraction"] == 0.5
    assert out.loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4)


def test_a_dual_clip_bounds_what_a_negative_advantage_can_do() -> None:
    out, gradient = run([one([0.0], [-5.0], -1.0)], replace(PLAIN, dual_clip=3.0))
    assert out.loss.item() == pytest.approx(3.0)
    assert gradient.item() == 0
    assert run([one([0.0], [-5.0], -1.0)], PLAIN)[0].loss.item() == pytest.approx(math.exp(5.0))


def test_cispo_keeps_the_gradient_of_a_clipped_token() -> None:
    o = objective(preset="cispo")
    _, gradient = run([one([math.log(0.9)], [math.log(0.09)])], o)  # ratio 10, clipped to 5
    assert gradient.item() == pytest.approx(-5.0)
    assert run([one([math.log(0.9)], [math.log(0.09)])], PLAIN)[1].item() == 0


# ---------------------------------------------------------------------------------------------------- corrections


def test_truncation_and_masking_of_tokens() -> None:
    log = math.log
    weights = [1.5, 9.0, 0.4]
    answers = [one([-1.0] * 3, [-1.0] * 3, rollout=[-1.0 - log(w) for w in weights])]
    out, truncated = run(answers, objective(correction="truncate"))
    torch.testing.assert_close(truncated, -torch.tensor([1.5, 2.0, 0.4], dtype=torch.float64) / 3)
    assert out.maxima["mismatch_max"].item() == pytest.approx(log(9.0))
    out, masked = run(answers, objective(correction="mask"))  # IcePop: 0.5 to 5
    torch.testing.assert_close(masked, -torch.tensor([1.5, 0.0, 0.0], dtype=torch.float64) / 3)
    assert out.sums["correction_masked"].item() == pytest.approx(2 / 3)
    assert run(answers, PLAIN)[0].sums["correction_mean"] == 1


def test_masking_of_whole_answers() -> None:
    """One token far off masks its answer where the answer's own ratio is off, and no other answer."""
    far = one([-1.0] * 2, [-1.0] * 2, rollout=[-1.0, -9.0])
    near = one([-1.0] * 2, [-1.0] * 2)
    _, gradient = run([far, near], objective(correction="mask", correction_level="sequence"))
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, -0.25, -0.25], dtype=torch.float64))
    balanced = one([-1.0] * 2, [-1.0] * 2, rollout=[7.0, -9.0])  # off by e^-8 and e^8: as a whole not at all
    _, gradient = run([balanced], objective(correction="mask", correction_level="trajectory"))
    assert gradient.abs().min() > 0


# ---------------------------------------------------------------------------------------------------- KL, entropy


def test_the_unbiased_kl_gradient_is_that_of_the_divergence() -> None:
    """Exactly, over all outcomes of a categorical policy, fresh and off-policy; the gradient of k3 as it stands is not."""
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    reference, old = torch.randn(2, 5, dtype=torch.float64).log_softmax(-1)
    now = logits.log_softmax(-1)
    (true,) = torch.autograd.grad((now.exp() * (now - reference)).sum(), logits, retain_graph=True)
    for sampled in (now.detach(), old):
        for kind in KL:
            expected = (sampled.exp() * kl_per_token(now, reference, sampled, kind, KLGradient.UNBIASED)).sum()
            (found,) = torch.autograd.grad(expected, logits, retain_graph=True)
            torch.testing.assert_close(found, true)
    estimate = (now.detach().exp() * kl_per_token(now, reference, now.detach(), KL.K3, KLGradient.DIRECT)).sum()
    (found,) = torch.autograd.grad(estimate, logits, retain_graph=True)
    assert not torch.allclose(found, true, rtol=0.05)


def test_the_unbiased_gradient_is_that_of_k3_times_the_ratio() -> None:
    """arXiv 2512.02556: what DeepSeek-V3.2 differentiates, ratio included."""
    now, reference, old = (-3 * torch.rand(3, 50, dtype=torch.float64)).unbind()
    now.requires_grad_()
    (found,) = torch.autograd.grad(kl_per_token(now, reference, old, KL.K3, KLGradient.UNBIASED).sum(), now)
    weighted = (now - old).exp() * kl_per_token(now, reference, old, KL.K3, KLGradient.DIRECT)
    (expected,) = torch.autograd.grad(weighted.sum(), now)
    torch.testing.assert_close(found, expected)


def test_k3_is_not_negative_and_kl_enters_with_its_coefficient() -> None:
    a, b = torch.randn(2, 100)
    assert (kl_per_token(a, b, a, KL.K3, KLGradient.DIRECT) >= 0).all()
    far = replace(one([-1.0], [-1.0], 0.0), reference=[-2.0])
    out, _ = run([far], objective(kl_coef=0.5))
    assert out.loss.item() == pytest.approx(0.5 * math.exp(-1.0))
    assert out.sums["kl"].item() == pytest.approx(math.exp(-1.0))
    assert "kl" not in run([far], objective(kl_coef=0.5), reference=False)[0].sums


def test_entropy_bonus_lowers_the_loss() -> None:
    o = objective(entropy_coef=0.01)
    inputs = make_inputs([one([-1.0], [-1.0], 0.0)], o)
    entropy = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    out = policy_loss(replace(inputs, entropy=entropy), o)
    out.loss.backward()
    assert entropy.grad is not None
    assert entropy.grad.item() == pytest.approx(-0.01)
    assert out.sums["entropy"] == 2.0


# ---------------------------------------------------------------------------------------------------- cuts and edges


@pytest.mark.parametrize("preset", PRESETS)
@settings(max_examples=40, deadline=None)
@given(answers=answers_of.filter(lambda a: len(a) > 1), cut=st.integers(1, 3))
def test_a_mini_batch_cut_in_two_has_the_same_loss_and_gradient(preset: str, answers: list[Answer], cut: int) -> None:
    o = resolve(LossConfig(preset=preset, correction="mask", kl_coef=0.1), longest=7)
    whole, gradient = run(answers, o)
    total = sum(len(a.now) for a in answers)
    parts = [run(part, o, total=total, rows=len(answers)) for part in (answers[:cut], answers[cut:]) if part]
    assert sum(out.loss.item() for out, _ in parts) == pytest.approx(whole.loss.item(), rel=1e-6, abs=1e-7)
    torch.testing.assert_close(torch.cat([g for _, g in parts]), gradient, rtol=1e-6, atol=1e-9)
    for name in whole.sums:
        assert sum(out.sums[name].item() for out, _ in parts) == pytest.approx(whole.sums[name].item(), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("preset", PRESETS)
def test_one_token_answers_have_one_ratio_at_every_level(preset: str) -> None:
    answers = [replace(one([-1.0], [-1.1], a), rollout=[-1.2]) for a in (1.0, -1.0)]
    values = []
    for level in levels:
        out, gradient = run(answers, resolve(LossConfig(preset=preset, ratio=level), longest=10))
        values.append([out.loss.item(), *gradient.tolist()])
    assert values[1:] == [pytest.approx(values[0])] * 2


@pytest.mark.parametrize("preset", PRESETS)
def test_advantages_of_zero_leave_nothing_but_kl(preset: str) -> None:
    out, gradient = run([one([-1.0, -2.0], [-1.2, -1.9], 0.0)], resolve(LossConfig(preset=preset, kl_coef=0.0), longest=10))
    assert out.loss.item() == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("correction", ["truncate", "mask"])
@pytest.mark.parametrize("preset", PRESETS)
def test_absurd_log_probs_stay_finite(preset: str, correction: str) -> None:
    answers = [
        Answer(1.0, [0.0, -1e4], [-1e4, 0.0], [0.0, -1e4], [-1e4, 0.0]),
        Answer(-1.0, [-1e4] * 40, [0.0] * 40, [-1e4] * 40, [0.0] * 40),
        Answer(-1.0, [0.0] * 40, [-30.0] * 40, [0.0] * 40, [-1e30] * 40),
    ]
    out, gradient = run(answers, resolve(LossConfig(preset=preset, correction=correction, kl_coef=0.1), longest=10))
    assert torch.isfinite(out.loss)
    assert torch.isfinite(gradient).all()
    assert all(torch.isfinite(value) for value in (*out.sums.values(), *out.maxima.values()))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns(preset: str) -> None:
    """A policy of three tokens out of five, rewarded by how many are 1; two steps per batch of 32 rollouts, an engine that is a little off."""
    torch.manual_seed(0)
    o = resolve(LossConfig(preset=preset), longest=3)
    logits = torch.zeros(3, 5, requires_grad=True)
    frozen = logits.detach().log_softmax(-1)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    rows, counts = torch.arange(32).repeat_interleave(3), torch.full((32,), 3)
    weights = token_weights(rows, counts, aggregate=o.aggregate, total_tokens=96, total_rows=32, constant_length=3)
    for _ in range(60):
        now = logits.detach().log_softmax(-1)
        engine = (now + 0.02 * torch.randn_like(now)).log_softmax(-1)
        tokens = torch.multinomial(engine.exp(), 32, replacement=True).T  # [32, 3]
        rewards = (tokens == 1).float().mean(-1)
        groups = [group_advantages(g.tolist(), baseline=o.baseline, normalise=o.normalise) for g in rewards.split(8)]

        def chosen(table: torch.Tensor, tokens: torch.Tensor = tokens) -> torch.Tensor:
            return table.gather(1, tokens.T).T.flatten()

        advantages = torch.tensor([a for group in groups for a in group], dtype=torch.float32)[rows]
        for _ in range(2):
            inputs = LossInputs(
                chosen(logits.log_softmax(-1)), chosen(now), chosen(engine), advantages, weights, rows, counts, 1 / 96, chosen(frozen)
            )
            optimizer.zero_grad()
            policy_loss(inputs, o).loss.backward()
            optimizer.step()
    assert logits.detach().softmax(-1)[:, 1].min() > 0.6, "0.2 at the start"


def test_an_empty_micro_batch_has_a_loss_of_zero() -> None:
    nothing, none = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for preset in PRESETS:
        inputs = LossInputs(nothing.clone().requires_grad_(), nothing, nothing, nothing, nothing, none, torch.tensor([0]), 0.1, nothing)
        for out in (policy_loss(inputs, resolve(LossConfig(preset=preset), longest=10)), sft_loss(inputs)):
            assert out.loss == 0


def test_weights_by_token_sequence_and_constant() -> None:
    rows, counts = torch.tensor([0, 0, 0, 1]), torch.tensor([3, 1])
    by_token = token_weights(rows, counts, aggregate=Aggregate.TOKEN, total_tokens=8, total_rows=4)
    torch.testing.assert_close(by_token, torch.full((4,), 1 / 8))
    by_sequence = token_weights(rows, counts, aggregate=Aggregate.SEQUENCE, total_tokens=8, total_rows=4)
    torch.testing.assert_close(by_sequence, torch.tensor([1 / 12, 1 / 12, 1 / 12, 1 / 4]))
    constant = token_weights(rows, counts, aggregate=Aggregate.CONSTANT, total_tokens=8, total_rows=4, constant_length=20)
    torch.testing.assert_close(constant, torch.full((4,), 1 / 80))


def test_sft_is_weighted_cross_entropy() -> None:
    inputs = make_inputs([one([-1.0, -3.0], [0.0, 0.0])], PLAIN)
    out = sft_loss(inputs)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(2.0)
    torch.testing.assert_close(inputs.logprobs.grad, torch.tensor([-0.5, -0.5], dtype=torch.float64))
