"""Is a checkpoint one of this run? Its settings against those of now. Pure.

Promise: a setting that decides what is learnt, and in which order, is the same or the checkpoint is refused, with the
difference shown. Others may change between two submissions and are told; where things lie and what they may cost is nobody's concern.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmsr_ray.evaluation.summary import LOCATIONS

FIXED = (
    "run.seed",
    "agent",
    "reward",
    "model.dtype",
    "model.min_pixels",
    "model.max_pixels",
    "rollout.temperature",
    "rollout.seeded",
    "rollout.min_survivors",
    "learner.world_size",
    "learner.zero_stage",
    "learner.dtype",
    "learner.lora",
    "learner.freeze_vision",
    "learner.weight_decay",
    "learner.betas",
    "learner.grad_clip",
    "grpo.groups_per_step",
    "grpo.group_size",
    "grpo.minibatches",
    "grpo.staleness",
    "grpo.filter_groups",
    "grpo.filter_limit",
    "grpo.lr",
    "grpo.lr_schedule",
    "grpo.lr_decay_ratio",
    "grpo.lr_decay_at",
    "grpo.lr_warmup_steps",
    "grpo.loss",
)
"""Settings, or whole sections, of which a resumed run must not have others. The questions themselves are the feeder's to compare."""

Settings = Mapping[str, Any]


def differences(saved: Settings, now: Settings) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value in the checkpoint, value now) wherever they differ; None stands for absent. Locations are left out."""
    old, new = dict(_flat(saved)), dict(_flat(now))
    return {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)}


def refusal(saved: Settings, now: Settings) -> str:
    """Why the checkpoint is another run's, in one sentence; "" when it is not."""
    other = {key: values for key, values in differences(saved, now).items() if _fixed(key)}
    return f"the checkpoint is of another config: {_said(other)}; set it as it was, or start a run of another name" if other else ""


def changes(saved: Settings, now: Settings) -> str:
    """What else is not as it was, in words; "" for nothing."""
    return _said({key: values for key, values in differences(saved, now).items() if not _fixed(key)})


def _said(found: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in found.items())


def _fixed(key: str) -> bool:
    return any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED)


def _flat(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if prefix and key in LOCATIONS:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
