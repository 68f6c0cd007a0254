from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmsr_ray.learner.benchmark import run
from mmsr_ray.learner.objective import PRESETS, LossConfig, Objective, resolve
from mmsr_ray.learner.pictures import PatchCache
from mmsr_ray.learner.plan import Item, UpdatePlan, plan_update
from mmsr_ray.learner.step import collate_portion, contribution, fit, score
from tests.learner.conftest import make_policy, make_row

ROWS = [make_row(i, length=25 + 8 * i, advantage=(-1.0) ** i) for i in range(8)]


def make_plan(*, world_size: int = 1, tokens: int = 10_000, packing: str = "never", loss: str = "grpo") -> UpdatePlan:
    items = [Item(i, 0, row.advantage, row.tokens.length, int(row.tokens.loss_mask.sum())) for i, row in enumerate(ROWS)]
    return plan_update(items, world_size=world_size, micro_batch_tokens=tokens, packing=packing, loss=loss, lr=1e-3)


def loss_and_gradient(plan: UpdatePlan, cache: PatchCache, objective: Objective) -> tuple[float, torch.Tensor]:
    """All ranks' micro-batches one after the other in this process: what the ranks' sum must be.

    Old and rollout log-probs lie near the policy's and depend on the token alone, so that ratios are neither 1 nor all clipped.
    """
    policy = make_policy()
    total = 0.0
    mini = plan.minibatches[0]
    for portion in (portion for rank in mini.ranks for portion in rank):
        batch = collate_portion(portion, lambda item: ROWS[item.group], policy, cache)
        reference = torch.full_like(batch.rollout_logprobs, -5.0)
        old = score(policy, batch, 0.9) + 0.1 * torch.sin(1000 * batch.rollout_logprobs)
        batch.rollout_logprobs = old + 0.2 * torch.sin(2000 * batch.rollout_logprobs)
        out = contribution(policy, batch, mini, objective=objective, temperature=0.9, old=old, reference=reference)
        out.loss.backward()
        total += out.loss.item()
    return total, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_and_gradient_do_not_depend_on_ranks_micro_batches_or_layout(cache: PatchCache, preset: str) -> None:
    config = LossConfig(preset=preset, clip_low=0.05, clip_high=0.05, correction="mask", kl_coef=0.01, entropy_coef=0.01)
    objective = resolve(config, longest=30)
    loss, gradient = loss_and_gradient(make_plan(), cache, objective)
    for plan in (make_plan(tokens=100), make_plan(world_size=2, tokens=130), make_plan(world_size=3, tokens=200, packing="always")):
        other_loss, other_gradient = loss_and_gradient(plan, cache, objective)
        assert other_loss == pytest.approx(loss, rel=1e-4)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-3, atol=1e-5)


def test_an_infinite_loss_has_no_finite_gradient(cache: PatchCache) -> None:
    """The clamp of the log-ratio gives it a gradient of zero: taken for a good step it would hide that the data are broken."""
    policy, plan = make_policy(), make_plan()
    batch = collate_portion(plan.minibatches[0].ranks[0][0], lambda item: ROWS[item.group], policy, cache)
    batch.advantages[0] = math.inf
    old = score(policy, batch, 1.0) + 50.0
    out = contribution(policy, batch, plan.minibatches[0], objective=Objective(), temperature=1.0, old=old)
    out.loss.backward()
    assert not torch.isfinite(out.loss)
    assert not any(torch.isfinite(p.grad).all() for p in policy.hf.lm_head.parameters() if p.grad is not None)


def test_fit_lowers_the_loss_and_skips_what_is_not_finite(cache: PatchCache) -> None:
    policy = make_policy()
    optimizer = torch.optim.AdamW(policy.parameters())
    rows = [[row] for row in ROWS]
    items = [Item(i, 0, 1.0, row.tokens.length, int(row.tokens.loss_mask.sum())) for i, row in enumerate(ROWS)]
    plan = plan_update(items, world_size=1, micro_batch_tokens=200, loss="sft", lr=3e-3)
    losses = [metrics["loss"] for metrics in fit(policy, optimizer, iter([(plan, rows)] * 20), cache)]
    assert losses[-1] < losses[0] / 2
    before = [p.detach().clone() for p in policy.parameters()]
    broken = [Item(i.group, 0, math.nan, i.length, i.sampled_tokens) for i in items]
    plan = plan_update(broken, world_size=1, micro_batch_tokens=200, loss="sft", lr=3e-3)
    assert next(fit(policy, optimizer, iter([(plan, rows)]), cache))["skipped"] == 1.0
    for parameter, value in zip(policy.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=0, atol=0)


BARE = """
import importlib.util, runpy, sys

ABSENT = {"ray", "vllm", "deepspeed", "omegaconf", "datasets"}
real = importlib.util.find_spec


class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in ABSENT else real(name, package)  # transformers asks
sys.meta_path.insert(0, Bare())
sys.argv = ["benchmark", "--size", "tiny", "--rows", "3", "--passes", "1", "--micro-batch-tokens", "1024"]
runpy.run_module("mmsr_ray.learner.benchmark", run_name="__main__")
"""


def test_the_benchmark_runs_on_a_bare_machine() -> None:
    """Its command, where importing anything beyond torch and transformers of what we use fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", BARE], cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["packed"]["tokens_per_second"] > 0


def test_the_benchmark_runs_where_there_is_no_gpu() -> None:
    result = run("tiny", rows=3, tokens=1024, passes=1, checkpointing=True)
    for compared in ("packed_against_padded", "alone_against_together"):
        assert result["numerics"][compared]["tokens"] > 0
        assert result["numerics"][compared]["mean"] <= result["numerics"][compared]["max"] < 0.05  # bfloat16 has 8 bits
    assert result["packed"]["real_tokens"] == result["packed"]["computed_tokens"] == result["padded"]["real_tokens"]
    assert result["packed_over_padded"] > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_answers_of_one_token_train(cache: PatchCache, preset: str) -> None:
    """Also beside an empty micro-batch, which is what a rank without rows is given."""
    rows = [make_row(i, length=30) for i in range(4)]
    for row in rows:
        row.tokens.loss_mask[:] = False
        row.tokens.loss_mask[-1] = True
    items = [Item(i, 0, (-1.0) ** i, row.tokens.length, 1) for i, row in enumerate(rows[:3])]
    mini = plan_update(items, world_size=2, micro_batch_tokens=1, packing="auto").minibatches[0]
    assert [[len(portion.items) for portion in rank] for rank in mini.ranks] == [[1, 1], [1, 0]]
    policy, losses = make_policy(), []
    for portion in (portion for rank in mini.ranks for portion in rank):
        batch = collate_portion(portion, lambda item: replace(rows[item.group], advantage=item.advantage), policy, cache)
        out = contribution(policy, batch, mini, objective=resolve(LossConfig(preset=preset), longest=30), temperature=1.0)
        out.loss.backward()
        losses.append(out.loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] == 0.0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in policy.parameters())
    assert any(p.grad is not None and p.grad.any() for p in policy.parameters())
