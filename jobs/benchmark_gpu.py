"""The suite `gpu`: what one card makes of a size of Qwen2.5-VL with random weights; nothing is downloaded.

    python jobs/benchmark.py suite=gpu --size 7b [--parts engine,update] [--steps 50]

Parts: `learner`, its compute core by attention kernel and layout; `engine`, in the agent's loop against bare vLLM; `update`, of weights by
transport; `colocated` GRPO steps taken apart, their memory and its growth; `numerics` of learner and engine, and in `float32`. A part that
cannot run says "not available" and why, and the others go on; what was measured is in the file before the next part begins.
`--size tiny` runs all of it without a GPU, for its code: those numbers mean nothing.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray.exceptions import RayError

from jobs import benchmark_gpu_parts as parts
from jobs.atlas_stage import world
from jobs.benchmark_rows import row
from jobs.benchmark_transports import NotAvailable, transport_rows
from jobs.benchmark_weights import model_folder
from jobs.connect import connect
from mmsr_ray.config import Config
from mmsr_ray.learner.attention import DEFAULT, KERNELS
from mmsr_ray.learner.group import LearnerError
from mmsr_ray.tools.actor import start_tools

log = logging.getLogger("benchmark")
ROOT = Path(__file__).resolve().parent.parent
SUITE = "gpu"
SETTINGS = (
    "grpo.steps=1000",  # more than are taken: the end would export the model
    "grpo.lr=1e-6",
    "grpo.lr_schedule=constant",
    "grpo.checkpoint_every=1000",
    "grpo.groups_kept=0",
    "grpo.groups_per_step=4",
    "evaluation.before_training=false",
    "learner.world_size=1",
    "learner.dtype=bfloat16",
    "learner.packing=always",
    "learner.gradient_checkpointing=true",
    "model.dtype=bfloat16",
    "rollout.enforce_eager=false",
    "rollout.gpu_memory_utilization=0.8",
)
GOAL_MFU, GOAL_LOOP, GOAL_PAUSE = 0.45, 0.9, 1.0
SPEED_SECONDS = 1800.0
PARTS = ("learner", "engine", "numerics", "float32", "update", "colocated")
LEARNER = [*((kernel, False) for kernel in KERNELS), (DEFAULT, True)]  # of its part: kernels, and whether the rest is fused

Rows = list[dict[str, Any]]
Part = Callable[[], Rows]


def gpu(config: Config, size: str, chosen: Sequence[str] = PARTS, steps: int = parts.STEPS) -> Iterator[Rows]:
    """Rows, part by part; a part that failed or cannot run has one row with `not_available`, the reason."""
    cuda = torch.cuda.is_available()
    if not cuda and size != "tiny":
        yield [{"name": f"suite gpu, size {size}", "not_available": "this machine has no GPU; --size tiny runs the suite's code without"}]
        return
    if "learner" in chosen:
        for kernel, fused in LEARNER:
            yield attempt(f"learner speed, {kernel}{', fused' * fused}", lambda k=kernel, f=fused: speed(size, k, fused=f))
    if not set(chosen) - {"learner"}:
        return
    connect(config)
    with world(config) as made, tempfile.TemporaryDirectory(dir=config.run.dir) as folder:
        here = sized(made, size, Path(folder), cuda=cuda)
        tools = start_tools(here)
        for name, (title, part) in {
            "engine": ("engine against bare vLLM", lambda: parts.engine(here, size)),
            "numerics": ("numerics of learner and engine", lambda: parts.numerics(here, size)),
            "float32": ("numerics of learner and engine in float32", lambda: parts.numerics(in_float32(here), size)),
            "update": ("weight updates", lambda: transport_rows(here, size, SUITE)),
            "colocated": ("colocated steps", lambda: parts.colocated(here, size, steps)),
        }.items():
            if name in chosen:
                yield attempt(title, part)
        del tools


def attempt(name: str, part: Part) -> Rows:
    """A part's rows, or the one that says why there are none."""
    try:
        return part()
    except NotAvailable as error:
        return [{"name": name, "not_available": str(error)}]
    except (RayError, LearnerError, RuntimeError, OSError, ValueError, KeyError, TimeoutError) as error:
        log.exception("%s failed", name)
        return [{"name": name, "not_available": f"it failed: {error!r}"[:500]}]


def sized(config: Config, size: str, folder: Path, *, cuda: bool) -> Config:
    """The config on a model folder of the size, with pictures and lengths of the real ones where the model is a real one."""
    share = {"gpus": 0.5} if cuda else {"gpus": 0.0}
    here = replace(
        config,
        rollout=replace(
            config.rollout, gpus_per_runner=share["gpus"], num_runners=1, enforce_eager=config.rollout.enforce_eager or not cuda
        ),
        learner=replace(config.learner, gpus_per_rank=share["gpus"]),
    )
    if size == "tiny":
        return here
    model = replace(
        config.model,
        path=str(model_folder(folder, Path(config.model.path), size)),
        min_pixels=262_144,
        max_pixels=903_168,
        thumbnail_max_pixels=90_000,
    )
    agent = replace(config.agent, max_prompt_tokens=4096, max_turn_tokens=512, max_total_tokens=8192, deadline_seconds=280)
    learner = replace(here.learner, micro_batch_tokens=8192, start_seconds=1200)
    return replace(here, model=model, agent=agent, learner=learner)


def in_float32(config: Config) -> Config:
    """For the numerics: what differs there is a mistake, what differs in bfloat16 alone is rounding."""
    return replace(config, model=replace(config.model, dtype="float32"))


def speed(size: str, kernel: str, *, fused: bool) -> Rows:
    """The compute core in a process of its own, as on a bare machine."""
    arguments = ["--size", size, "--kernel", kernel, "--micro-batch-tokens", "8192" if size != "tiny" else "1024"]
    arguments += ["--rows", "16" if size != "tiny" else "3", "--passes", "2" if size != "tiny" else "1"]
    command = [sys.executable, "-m", "mmsr_ray.learner.benchmark", *arguments, *["--fused"] * fused]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=SPEED_SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-500:])
    return speed_rows(json.loads(done.stdout))


def speed_rows(found: dict[str, Any]) -> Rows:
    """Of one run of `learner.benchmark`. Raises NotAvailable as it says."""
    if "not_available" in found:
        raise NotAvailable(found["not_available"])
    label = f"learner forward and backward, Qwen2.5-VL-{found['size'].upper()} shape, bf16, kernel {found['kernel']}{', fused' * found['fused']}"
    packed, padded = found["packed"], found["padded"]
    made = [
        row(f"{label}: tokens per second, packed", packed["tokens_per_second"], "tokens/s", "padded", padded["tokens_per_second"], SUITE)
    ]
    if packed["mfu"] is not None:
        made.append(row(f"{label}: model FLOP utilisation, packed", packed["mfu"], "share of peak", "the goal", GOAL_MFU, SUITE))
    if packed["peak_memory_gib"] is not None:
        made.append(row(f"{label}: peak memory, packed", packed["peak_memory_gib"], "GiB", "padded", padded["peak_memory_gib"], SUITE))
    return made
