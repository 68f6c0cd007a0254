"""Is a checkpoint one of this run? Its settings against those of now. Pure.

Promise: a setting that decides what is learnt, and in which order, is the same or the checkpoint is refused, with the
difference shown. Others may change between two submissions and are told; where things lie and what they may cost is nobody's concern.
"""

from __future__ import annotations

from mmsr_ray.differences import Settings, differences, said, under

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
    "learner.lora.rank",
    "learner.lora.alpha",
    "learner.lora.targets",
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


def refusal(saved: Settings, now: Settings) -> str:
    """Why the checkpoint is another run's, in one sentence; "" when it is not."""
    other = {key: values for key, values in differences(saved, now).items() if under(key, FIXED)}
    return f"the checkpoint is of another config: {said(other)}; set it as it was, or start a run of another name" if other else ""


def changes(saved: Settings, now: Settings) -> str:
    """What else is not as it was, in words; "" for nothing."""
    return said({key: values for key, values in differences(saved, now).items() if not under(key, FIXED)})
