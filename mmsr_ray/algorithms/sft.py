"""Supervised training on demonstration groups, for the warm start and the SFT baseline (spec §4.3), through the same learner ranks and the same update as GRPO.

Invariant: which demonstrations a step sees depends on (seed, step) and the demonstrations alone, so a driver that goes on
from step k trains what an uninterrupted one would have trained.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from ray import ObjectRef

from mmsr_ray.config import Config, SFTConfig
from mmsr_ray.evaluation.summary import write_json
from mmsr_ray.learner.colocation import cards_alone
from mmsr_ray.learner.group import LearnerGroup
from mmsr_ray.learner.plan import Item
from mmsr_ray.learner.schedule import learning_rate

logger = logging.getLogger(__name__)

Demonstrations = Sequence[tuple[ObjectRef, Sequence[Item]]]  # a Group in the object store, and its trainable trajectories
OnStep = Callable[[int, dict[str, float]], None]
MARK = "sft.json"  # of a folder whose model is whole: the last step's metrics


class SFTError(RuntimeError):
    """The demonstrations cannot be trained on."""


def batches(sizes: Sequence[int], batch_size: int, seed: int, steps: int) -> Iterator[list[tuple[int, int]]]:
    """`steps` lists of (group, item) pairs: epochs of seeded permutations of all items, cut into full batches.

    A batch may reach over the border of two epochs. `sizes[g]` is the number of items of group g.
    """
    pairs = [(group, item) for group, size in enumerate(sizes) for item in range(size)]
    if not pairs:
        raise SFTError("there are no demonstrations: set sft.demonstrations or let the job make them")
    epoch = 0
    pending: list[tuple[int, int]] = []
    for _ in range(steps):
        while len(pending) < batch_size:
            order = np.random.default_rng((seed, epoch)).permutation(len(pairs))
            pending += [pairs[i] for i in order]
            epoch += 1
        yield pending[:batch_size]
        pending = pending[batch_size:]


def with_steps(config: SFTConfig, count: int) -> SFTConfig:
    """The settings with `epochs` over `count` demonstrations turned into steps; at least one."""
    return replace(config, steps=max(1, round(config.epochs * count / config.batch_size))) if config.epochs else config


def fine_tune(
    config: Config, model: str, make: Callable[[], Demonstrations], target: Path, on_step: Callable[[int, int, float], None] | None = None
) -> None:
    """Train `model` (folder or hub id) as `config.sft` and `config.learner` say and write it to `target`, in transformers' layout.

    `make()` gives the demonstrations while the learner starts; `on_step(step, steps, loss)` counts from 1. `target` holds `MARK`
    once it is complete. Raises SFTError without demonstrations, LearnerError, and NotWritten.
    """
    alone = replace(config.learner, gpus_per_rank=cards_alone(config.learner, config.learner.gpus_per_rank))
    learners = LearnerGroup(replace(config, learner=alone), model)
    try:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner-start") as pool:  # both take a minute of mostly waiting
            starting = pool.submit(learners.start)
            demonstrations = make()
            starting.result()
        learners.find_micro_batch()
        settings = with_steps(config.sft, sum(len(items) for _, items in demonstrations))

        def told(step: int, values: dict[str, float]) -> None:
            if on_step is not None:
                on_step(step, settings.steps, values["loss"])

        metrics = train_sft(learners, demonstrations, settings, config.run.seed, on_step=told)
        learners.export(target)
    finally:
        learners.shutdown()
    write_json(target / MARK, metrics | {"steps": settings.steps, "demonstrations": len(demonstrations)})  # last


def train_sft(
    group: LearnerGroup,
    demonstrations: Demonstrations,
    config: SFTConfig,
    seed: int,
    on_step: OnStep | None = None,
) -> dict[str, float]:
    """Train a started LearnerGroup for `config.steps` steps of `config.batch_size` trajectories.

    `on_step(step, metrics)` is called after every step (from 1), with at least loss, lr, seconds and seconds_left.
    Returns the metrics of the last step, with "seconds" of the whole and "loss_mean" over the last tenth.
    Raises SFTError without demonstrations, and what LearnerGroup.update raises.
    """
    began = time.monotonic()
    losses: list[float] = []
    metrics: dict[str, float] = {}
    warmup = int(config.warmup_ratio * config.steps)
    for step, batch in enumerate(batches([len(items) for _, items in demonstrations], config.batch_size, seed, config.steps)):
        rate = learning_rate(step, base=config.lr, schedule=config.lr_schedule, steps=config.steps, warmup_steps=warmup)
        numbers = sorted({number for number, _ in batch})
        place = {number: i for i, number in enumerate(numbers)}
        items = [replace(demonstrations[number][1][i], group=place[number], advantage=1.0) for number, i in batch]
        plan = group.plan(items, minibatches=1, loss="sft", lr=rate)
        at = time.monotonic()
        metrics = {**group.update(plan, [demonstrations[number][0] for number in numbers]), "lr": rate}
        losses.append(metrics["loss"])
        now = time.monotonic()
        metrics |= {"seconds": now - at, "seconds_left": (now - began) / (step + 1) * (config.steps - step - 1)}
        if on_step is not None:
            on_step(step + 1, metrics)
    tail = losses[-math.ceil(len(losses) / 10) :]
    return {**metrics, "seconds": time.monotonic() - began, "loss_mean": sum(tail) / max(len(tail), 1)}
