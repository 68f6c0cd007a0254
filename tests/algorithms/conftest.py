"""A small run for tests that start the real engine, learner and feeder: a Ray of 4 logical CPUs, 20 questions, the tiny policy."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mmsr_ray.config import Config, ProviderConfig, load
from mmsr_ray.data.schema import write_fvqa
from mmsr_ray.evaluation.trajectories import read_trajectories
from mmsr_ray.tools.actor import start_tools
from mmsr_ray.types import Need, Sample

QUESTIONS = 20


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), (number * 12 % 256, number * 40 % 256, 90)).save(buffer, format="PNG")
    return buffer.getvalue()


def samples() -> list[Sample]:
    return [Sample(f"q{i:02d}", f"What is the name of entity {i}?", picture(i), (f"name {i}",), need=Need.IMAGE) for i in range(QUESTIONS)]


def run_config(model: Path, folder: Path) -> Config:
    """Three groups of two rollouts a step, four steps, every group kept; the questions are written to `folder`."""
    write_fvqa(folder / "train.parquet", samples())
    settings = {
        "run.name": "run",
        "run.dir": folder,
        "model.path": model,
        "model.dtype": "float32",
        "model.min_pixels": 56 * 56,
        "model.max_pixels": 56 * 56,
        "model.thumbnail_max_pixels": 28 * 28,
        "data.train": folder / "train.parquet",
        "data.test": folder / "train.parquet",
        "data.prefetch_samples": 4,
        "agent.prompts": "brief",
        "agent.max_prompt_tokens": 256,
        "agent.max_turn_tokens": 160,
        "agent.max_total_tokens": 512,
        "agent.deadline_seconds": 60,
        "rollout.group_deadline_seconds": 90,
        "rollout.num_runners": 2,
        "rollout.cpus_per_runner": 0.5,
        "rollout.max_num_seqs": 16,
        "rollout.enforce_eager": True,
        "learner.world_size": 2,
        "learner.cpus_per_rank": 0.5,
        "learner.micro_batch_tokens": 1024,
        "grpo.steps": 4,
        "grpo.groups_per_step": 3,
        "grpo.group_size": 2,
        "grpo.minibatches": 1,
        "grpo.lr": 1e-4,
        "grpo.step_seconds": 200,
        "grpo.groups_kept": 3,
        "grpo.keep_checkpoints": 1,
        "grpo.checkpoint_every": 1,
        "tools.actors": 1,
        "evaluation.questions": 4,
        "evaluation.workflows": "[on_demand]",
    }
    made = load(None, [f"{key}={value}" for key, value in settings.items()])
    nowhere = ProviderConfig(kind="searxng", url="http://127.0.0.1:9", timeout_seconds=1)
    made.tools.text_search = nowhere
    made.tools.image_search = ProviderConfig(kind="serpapi_lens", url="http://127.0.0.1:9/search.json", timeout_seconds=1)
    made.tools.reader = ProviderConfig(kind="trafilatura", url="")
    return made


@pytest.fixture
def config(cluster: None, tiny_model: Path, tmp_path: Path) -> Iterator[Config]:
    """`run_config` with its tools running."""
    made = run_config(tiny_model, tmp_path)
    tools = start_tools(made)  # they live as long as this
    yield made
    del tools


def trained(folder: Path) -> dict[int, list[str]]:
    """Training step -> uids of its groups, from the trajectories in the run folder (the tests keep all of them)."""
    steps: dict[int, set[str]] = {}
    for row in read_trajectories(folder / "trajectories"):
        if row.step is not None:  # not of an evaluation
            steps.setdefault(row.step, set()).add(row.uid)
    return {step: sorted(uids) for step, uids in steps.items()}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
