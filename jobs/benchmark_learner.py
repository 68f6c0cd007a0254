"""The suite `learner`: tokens per second of the learner's compute core on this CPU, and what its plans are worth.

Forward and backward of a tiny Qwen2.5-VL with random weights in one process on one thread, no Ray, no optimiser step. What is
compared runs pass by pass in turn, so that a noisy neighbour disturbs both sides; the median of the passes counts.

Ranks are timed one after the other: a step of several takes, micro-batch by micro-batch, as long as the slowest of them, for
in ZeRO-2 and ZeRO-3 each one ends in a collective. So the cores of this machine are not shared by what is compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jobs.benchmark_rows import row
from mmsr_ray.config import Config
from mmsr_ray.learner.batch import Row
from mmsr_ray.learner.benchmark import GEOMETRY, build, items_of, make_row, timed_portions
from mmsr_ray.learner.cost import TOKENS_ONLY, CostModel
from mmsr_ray.learner.model import Policy
from mmsr_ray.learner.pictures import PatchCache
from mmsr_ray.learner.plan import UpdatePlan, plan_update
from mmsr_ray.learner.settings import LearnerConfig
from mmsr_ray.learner.shapes import SHAPES

ROWS, MEAN, PASSES = 64, 160, 7
MICRO_BATCH, SMALL_MICRO_BATCH = 2048, 1024
THUMBNAILS, THUMBNAIL_SIDE, PICTURE_SIDE = 10, 112, 56
SHAPE = SHAPES["tiny"]
CPU = torch.device("cpu")

Lengths = Callable[[np.random.Generator], int]
MIXES: dict[str, Lengths] = {
    "all of 160 tokens": lambda rng: MEAN,
    "of 80 to 240 tokens": lambda rng: int(rng.integers(MEAN // 2, MEAN * 3 // 2)),
    "of which most have below 100 tokens and a few up to 1500": lambda rng: min(1500, 30 + int(25 * (rng.pareto(1.2) + 1.0))),
}


def learner(config: Config) -> list[dict[str, Any]]:
    """Packed against padded over mixes of lengths, what the gate makes of it, and ranks balanced by what pictures cost."""
    torch.set_num_threads(1)
    torch.manual_seed(config.run.seed)
    policy = build(SHAPE, CPU, checkpointing=False, dtype=torch.float32)
    rows = []
    for name, lengths in MIXES.items():
        rows += _layouts(policy, name, _rows_of_lengths(lengths, config.run.seed))
    for ranks in (2, 4):
        rows.append(_balance(policy, ranks, config.run.seed))
    return rows


def _layouts(policy: Policy, name: str, made: list[Row]) -> list[dict[str, Any]]:
    plans = {
        packing: plan_update(items_of(made), world_size=1, micro_batch_tokens=MICRO_BATCH, packing=packing, loss="sft")
        for packing in ("never", "always", "auto")
    }
    speed = {packing: sum(r.tokens.length for r in made) / seconds for packing, seconds in _seconds(policy, made, plans).items()}
    load = f"{ROWS} rows {name}"
    better = max(speed["never"], speed["always"])
    return [
        row(f"learner tokens per second, packed, {load}", speed["always"], "tokens/s", "the same rows padded", speed["never"], "learner"),
        row(
            f"learner tokens per second, packed where the gate says so, {load}",
            speed["auto"], "tokens/s", "the better of packed and padded", better, "learner",
        ),
    ]  # fmt: skip


def _balance(policy: Policy, ranks: int, seed: int) -> dict[str, Any]:
    made = _rows_with_thumbnails(seed)
    cost = CostModel.of(policy.hf.config.to_dict(), LearnerConfig())
    plans = {
        name: plan_update(items_of(made), world_size=ranks, micro_batch_tokens=SMALL_MICRO_BATCH, packing="auto", loss="sft", cost=model)
        for name, model in (("cost", cost), ("tokens", TOKENS_ONLY))
    }
    tokens = sum(r.tokens.length for r in made)
    speed = {name: tokens / seconds for name, seconds in _seconds(policy, made, plans).items()}
    return row(
        f"learner tokens per second of {ranks} ranks that wait for each other, balanced by cost, "
        f"{ROWS} rows of which half have {THUMBNAILS} thumbnails",
        speed["cost"], "tokens/s", "balanced by tokens", speed["tokens"], "learner",
    )  # fmt: skip


def _seconds(policy: Policy, made: list[Row], plans: dict[str, UpdatePlan]) -> dict[str, float]:
    """Median seconds of a step by each plan, the first pass left out. The plans take turns."""
    cache = PatchCache(GEOMETRY)
    found: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(PASSES + 1):
        for name, plan in plans.items():
            (mini,) = plan.minibatches
            of_ranks = timed_portions(policy, made, mini, cache, CPU)
            found[name].append(sum(max(at_once) for at_once in zip(*of_ranks, strict=True)))
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}


def _rows_of_lengths(lengths: Lengths, seed: int) -> list[Row]:
    """Each with one picture, which a group of eight shares; the rest is text, a fifth of it sampled."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(ROWS):
        text = max(lengths(rng) - (PICTURE_SIDE // 28) ** 2 - 2, 8)
        made.append(make_row(rng, [(PICTURE_SIDE, number // 8)], text, text // 5, SHAPE.vocabulary))
    return made


def _rows_with_thumbnails(seed: int) -> list[Row]:
    """Of 80 to 240 tokens of text; half of the rows found ten pictures of their own besides, of 64 patches or 16 tokens each."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(ROWS):
        found = [(THUMBNAIL_SIDE, 1000 + number * THUMBNAILS + i) for i in range(THUMBNAILS if rng.random() < 0.5 else 0)]
        pictures = [(PICTURE_SIDE, number // 8), *found]
        text = int(rng.integers(MEAN // 2, MEAN * 3 // 2))
        made.append(make_row(rng, pictures, text, text // 5, SHAPE.vocabulary))
    return made
