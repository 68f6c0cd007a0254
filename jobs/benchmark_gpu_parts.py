"""The parts of the suite `gpu` that need Ray and vLLM: engine, weight update, colocated steps, numerics."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image

from jobs.benchmark_memory import growth_rows, resident
from jobs.benchmark_rows import row
from jobs.benchmark_transports import NotAvailable, one_runner
from jobs.memory import card_gib
from mmsr_ray.agent.pieces import Own
from mmsr_ray.agent.tokens import Transcript
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.config import Config
from mmsr_ray.data.reader import read_samples
from mmsr_ray.learner.batch import Row
from mmsr_ray.learner.memory import complaints, footprint_of
from mmsr_ray.learner.meter import HostMeter
from mmsr_ray.learner.model import load_policy
from mmsr_ray.learner.numerics import Differences, learner_with_engine, learner_with_itself
from mmsr_ray.learner.phases import Machine, plan
from mmsr_ray.learner.pictures import PatchCache, VisionGeometry
from mmsr_ray.learner.settings import LearnerConfig, LoRAConfig
from mmsr_ray.rollout.engine import VLLMEngine
from mmsr_ray.rollout.measure import bare_rate, runner_rate
from mmsr_ray.tools.actor import start_tools
from mmsr_ray.types import Sampling, SealedTokens

log = logging.getLogger("benchmark")

SUITE = "gpu"
QUESTIONS = 16
STEPS, SETTLED = 50, 10  # of the colocated run; medians and the growth of a card are counted from the second on, or from half of the steps
TRANSCRIPTS, TURNS, THUMBNAILS = 4, 3, 2  # of the numerics
SECONDS = 1800.0
GIB = 2**30
COUNTED_ON = 0.95  # of a card: where the planner says that it just fits, a long part would end in the allocator
NOISE = 2.0**-24  # below which nothing can be told apart in float32

Rows = list[dict[str, Any]]


def _label(size: str) -> str:
    return f"Qwen2.5-VL-{size.upper()} shape"


def engine(config: Config, size: str) -> Rows:
    """Sampled tokens per second of the runner against `vllm.LLM.generate`: the same prompts with pictures, one turn each."""
    samples = read_samples(config.data.train, config.data, questions=QUESTIONS, seed=config.run.seed)
    single = replace(config, agent=replace(config.agent, max_turns=1, allowed_paths=["answer"]))
    bare = bare_rate(single, samples, config.grpo.group_size)
    with one_runner(single, None) as actor:
        ours = runner_rate(actor, samples, config.grpo.group_size)
    name = f"tokens per second of the env runner, {QUESTIONS * config.grpo.group_size} rollouts of one turn with a picture, {_label(size)}"
    return [row(name, ours.per_second, "tokens/s", "vllm.LLM.generate on the same prompts", bare.per_second, SUITE)]


# ---------------------------------------------------------------------------------------------------- colocated


def colocated(config: Config, size: str, steps: int = STEPS) -> Rows:
    """GRPO steps of a runner and a rank that take turns: seconds by part, memory by phase, and what `steps` of them leave behind.

    Raises NotAvailable where no way of learning fits this machine.
    """
    here = replace(
        config,
        run=replace(config.run, name=f"benchmark-colocated-{os.getpid()}"),
        learner=replace(config.learner, colocated=True),
        grpo=replace(config.grpo, staleness=0),
    )
    how = ""
    if torch.cuda.is_available():
        here, how = that_fits(here, Machine(card_gib(), HostMeter("").now().total / GIB, cards=1))
    tools = start_tools(here)  # runners look for those of their run's name
    algorithm: Any = GRPOConfig.from_config(here).build_algo()
    try:
        readings = []
        for _ in range(steps):
            algorithm.train()
            readings.append(resident())
        records = [json.loads(line) for line in algorithm.metrics_file.path.read_text().splitlines()]
    finally:
        algorithm.stop()
        del tools
    settled = min(SETTLED, steps // 2)
    label = f"{_label(size)}{how}"
    return [*step_rows(records[settled:], label), *agreement_rows(records, label), *memory_rows(records, readings, label, settled)]


def that_fits(config: Config, machine: Machine) -> tuple[Config, str]:
    """The first way of learning that one rank has room for by the planner's count, and its name in rows. Raises NotAvailable."""
    own, said, machine = config.learner, [""], replace(machine, card_gib=COUNTED_ON * machine.card_gib)
    ways: dict[str, LearnerConfig] = {
        "": own,
        ", optimiser in host memory": replace(own, offload="optimizer"),
        ", adapters of rank 16": replace(own, lora=LoRAConfig(rank=16)),
    }
    for how, learner in ways.items():
        here = replace(config, learner=learner)
        said = complaints(plan(here, footprint_of(config.model.path), machine))
        if not said:
            return here, how
    raise NotAvailable(f"not even adapters fit: {said[0]}")


def step_rows(records: list[dict[str, Any]], of: str) -> Rows:
    """The whole step, and each of its parts and hand-overs as a share of it; medians."""

    def median(section: str, name: str) -> float:
        return statistics.median(record[section].get(name, 0.0) for record in records)

    whole = median("seconds", "total")
    label = f"a colocated GRPO step, {of}"
    rows = [row(f"seconds of {label}", whole, "s", "its rollouts", max(median("seconds", "rollout"), NOISE), SUITE)]
    for section, what in (("seconds", "in"), ("turns", "of the hand-over")):
        for name in sorted({name for record in records for name in record[section]} - {"total"}):
            rows.append(row(f"seconds {what} {name}, {label}", median(section, name), "s", "the whole step", whole, SUITE))
    return rows


def agreement_rows(records: list[dict[str, Any]], of: str) -> Rows:
    """Engine against learner where the engine has slept before every step: what it lost and did not get back would show here."""
    label = f"engine that sleeps against learner, most of {len(records)} colocated steps, {of}"
    return [
        row(
            f"|difference of log-probs|, {kind} of a step, {label}",
            max(record[name] for record in records),
            "nats",
            "the first step",
            max(records[0][name], NOISE),
            SUITE,
        )
        for kind, name in (("mean", "mismatch_abs_mean"), ("max", "mismatch_max"))
    ]


def memory_rows(records: list[dict[str, Any]], readings: list[dict[str, float]], of: str, settled: int = SETTLED) -> Rows:
    """Growth of host memory by kind of process, and where there is a card, its phases and its growth."""
    label = f"{len(readings)} colocated steps, {of}"
    rows = growth_rows(readings, label, SUITE)
    phases = sorted({name for record in records for name in record.get("device_gib", {})})
    if not phases:
        return [*rows, {"name": f"memory of a card by phase, {label}", "not_available": "this machine has no GPU"}]
    card = torch.cuda.get_device_properties(0).total_memory / GIB
    for name in phases:
        values = [record["device_gib"][name] for record in records if name in record["device_gib"]]
        rows.append(row(f"memory of the card, {name.replace('_', ' ')}, most of {label}", max(values), "GiB", "the card", card, SUITE))
        if len(values) > settled:
            rows.append(
                row(
                    f"memory of the card, {name.replace('_', ' ')}, after {label}",
                    values[-1],
                    "GiB",
                    f"after {settled}",
                    max(values[settled - 1], NOISE),
                    SUITE,
                )
            )
    return rows


# ---------------------------------------------------------------------------------------------------- numerics


def numerics(config: Config, size: str) -> Rows:
    """Learner against engine over transcripts of several turns with pictures in each, in the engine's dtype; engine first, then learner."""
    gpus = config.rollout.gpus_per_runner
    sealed = ray.get(ray.remote(num_cpus=0, num_gpus=gpus, max_calls=1)(_sampled).remote(config), timeout=SECONDS)
    found = ray.get(ray.remote(num_cpus=0, num_gpus=gpus, max_calls=1)(_scored).remote(config, sealed), timeout=SECONDS)
    return numerics_rows(found, size, config.model.dtype)


def _sampled(config: Config) -> list[SealedTokens]:
    return asyncio.run(_transcripts(config))


async def _transcripts(config: Config) -> list[SealedTokens]:
    """Conversations of an engine whose every user message brings pictures. Vision tokens are banned, so any model can hold them."""
    samples = read_samples(config.data.train, config.data, questions=TRANSCRIPTS, seed=config.run.seed)
    served = VLLMEngine(_with_room(config), None, config.run.namespace)
    await served.start()
    try:
        made = []
        for number, sample in enumerate(samples):
            transcript = Transcript(served.codec)
            transcript.add_user([served.codec.user_picture(sample.image), Own(sample.question)])
            for turn in range(TURNS):
                if turn:
                    pictures = [served.codec.thumbnail(_noise(number, turn, place)) for place in range(THUMBNAILS)]
                    transcript.add_user([*pictures, Own("and these?")])
                sampling = Sampling(1.0, min(config.agent.max_turn_tokens, 64), seed=100 * number + turn)
                transcript.add_generation(await served.generate(transcript.compact_ids(), transcript.pictures, sampling))
            made.append(transcript.seal())
        return made
    finally:
        served.stop()


def _with_room(config: Config) -> Config:
    """The engine takes as many pictures as the agent's limits permit, which may be fewer than a transcript here has."""
    agent = replace(
        config.agent, topk=max(config.agent.topk, THUMBNAILS * (TURNS - 1)), image_search_limit=max(1, config.agent.image_search_limit)
    )
    return replace(config, agent=agent, rollout=replace(config.rollout, max_model_len=max(config.agent.max_total_tokens, 2048)))


def _noise(*seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def _scored(config: Config, sealed: list[SealedTokens]) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = load_policy(config.model.path, dtype=getattr(torch, config.model.dtype)).to(device)
    cache = PatchCache(VisionGeometry.load(config.model.path))
    rows = [Row(tokens, 1.0) for tokens in sealed]
    return {"engine": learner_with_engine(policy, rows, cache, device), "itself": learner_with_itself(policy, rows, cache, device)}


def numerics_rows(found: dict[str, Any], size: str, dtype: str) -> Rows:
    """|difference| of log-probs: mean, p99 and maximum, beside what batching alone makes of the learner's own."""
    itself, made = found["itself"], []
    sides: dict[str, Differences] = {"learner against engine": found["engine"]}
    sides |= {name.replace("_", " "): Differences(**values) for name, values in itself.items()}
    batched = Differences(**itself["alone_against_together"])
    for side, differences in sides.items():
        label = f"{side}, {_label(size)}, {dtype}, {differences.tokens} tokens of {TURNS} turns with pictures in each"
        for kind in ("mean", "p99", "max"):
            value, floor = getattr(differences, kind), max(getattr(batched, kind), NOISE)
            made.append(
                row(f"|difference of log-probs|, {kind}, {label}", value, "nats", "the learner's rows alone against together", floor, SUITE)
            )
    return made
