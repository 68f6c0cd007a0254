"""The whole weights out of a checkpoint's shards, in one process without ranks.

Promise: what comes out is what `LearnerGroup.export` would have written then: names of the model's checkpoint, adapters
merged, in the learner's dtype.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import cast

import torch

from mmsr_ray.config import Config
from mmsr_ray.learner.model import load_policy
from mmsr_ray.learner.trainable import checkpoint_weights, choose

TAG = "learner"  # the folder of DeepSpeed's own files in a checkpoint
PLAIN = "mp_rank_00_model_states.pt"  # without ZeRO: the whole model, written by rank 0


def consolidated(folder: Path, config: Config) -> dict[str, torch.Tensor]:
    """Weights by name on the CPU. `config` is that of the run; its model.path gives the architecture. Needs memory for the model twice."""
    policy = load_policy(config.model.path, dtype=torch.float32)
    choose(policy, config.learner)
    state = _plain(folder) if config.learner.zero_stage == 0 else _merged(folder)
    missing, unknown = policy.load_state_dict(state, strict=False)
    tied = {"hf.lm_head.weight"}  # appears once, under the name of the embedding
    if unknown or set(missing) - tied:
        raise ValueError(f"{folder} and {config.model.path} are not one model: {sorted({*missing} - tied)[:3]} {sorted(unknown)[:3]}")
    dtype = torch.bfloat16 if config.learner.dtype == "bfloat16" else torch.float32
    return {weight.name: weight.value().to(dtype).contiguous() for weight in checkpoint_weights(policy)}


def _plain(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / TAG / PLAIN, map_location="cpu", weights_only=False)["module"]


def _merged(folder: Path) -> dict[str, torch.Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint  # importing DeepSpeed takes seconds

    with contextlib.redirect_stdout(sys.stderr):  # it prints
        return cast(dict[str, torch.Tensor], get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG))
