"""The suite `training`: whole GRPO steps of ours beside those of TRL's GRPOTrainer, on the same work.

A step is what a user waits for: rollouts, tool calls, reward, log-probs, loss, optimiser step and, here, the way of the new
weights into the engine, record and curves included. Ours is `GRPO.train()` with staleness 0, TRL's `GRPOTrainer.train()`
(jobs/benchmark_trl_training.py), one after the other, each with the whole machine to itself.

The same on both sides: the tiny Qwen2.5-VL with random weights in fp32; Atlas questions with their pictures; groups of 8; in
each rollout one search and then an answer, token for token (the token counts are compared, and a difference stops the
suite); the search, three requests to the stand-in services (search, page, summary) whose times add up to the call's; the
loss (GRPO, token mean, clip 0.2, k3 with 0.001 against a frozen copy, no correction for the engine: TRL samples with the
model it trains), AdamW, one optimiser step a batch.

Scripted is only what is said, for a random policy does not search: each turn is sampled for real (vLLM here, transformers'
`generate` there: TRL's vLLM mode crashes on a CPU), `TURN_TOKENS` tokens that no end token cuts short, and then replaced by
as many tokens of the script (jobs/benchmark_script.py). No two searches are the same, so no cache helps.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.benchmark_load import Server, pointed_at, stand_in
from jobs.benchmark_rows import row
from jobs.benchmark_script import TURN_TOKENS, rollout
from jobs.connect import connect
from mmsr_ray.agent.episode import run_episode
from mmsr_ray.algorithms.grpo import GRPO
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.atlas.policy import build_policy
from mmsr_ray.atlas.prepare import world_of
from mmsr_ray.config import Config, ConfigError
from mmsr_ray.data.schema import write_fvqa
from mmsr_ray.rollout.activity import TimedGenerate, TimedTools
from mmsr_ray.rollout.engine import VLLMEngine
from mmsr_ray.rollout.env_runner import SearchEnvRunner
from mmsr_ray.tools.actor import start_tools, stop_tools
from mmsr_ray.types import Generation, Picture, Sample, Sampling, Trajectory

if TYPE_CHECKING:
    from vllm import SamplingParams

log = logging.getLogger("benchmark")

GROUP = 8
ROLLOUTS, LATENCIES, ROUNDS = (8, 32), (0.0, 0.2, 1.0), 5
TRL_ROUNDS = 3
WARM_UP = 5  # steps: meanwhile kernels compile, connections open, and Ray starts the process that keeps trajectories
QUESTIONS = 128  # more than all steps of one size use: no question comes twice
TRL = Path(__file__).with_name("benchmark_trl_training.py")
TRL_SECONDS = 400.0
SAME = 0.02  # by how much the token counts of both sides may differ
SETTINGS = (
    "grpo.steps=1000",  # more than are taken: the end would export the model
    "grpo.lr=1e-5",
    "grpo.lr_schedule=constant",
    "grpo.loss.preset=grpo",
    "grpo.loss.correction=none",
    "grpo.loss.kl_coef=0.001",
    f"grpo.group_size={GROUP}",
    f"agent.max_turn_tokens={TURN_TOKENS}",
    "evaluation.before_training=false",
    "learner.micro_batch_tokens=8192",
    "rollout.enforce_eager=false",  # Atlas has true, for a quick start
)


@dataclass(frozen=True, slots=True)
class Side:
    """Median seconds of a step by latency, and the mean tokens of a rollout, from its prompt to its end."""

    seconds: dict[float, float]
    tokens: float


def training(config: Config) -> list[dict[str, Any]]:
    """All rows. Raises ConfigError where TRL is not installed."""
    if find_spec("trl") is None:
        raise ConfigError("suite=training compares with TRL, which is not installed: .venv/bin/pip install -e '.[bench]' adds it")
    # Ray's own 15 would let everything else on the machine go before us, which TRL's process does not
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (the name is Ray's)
    with tempfile.TemporaryDirectory() as folder, stand_in() as server:
        here = _prepared(config, Path(folder))
        theirs = {rollouts: _theirs(here, server, rollouts) for rollouts in ROLLOUTS}
        connect(here)
        ours = {rollouts: _ours(here, server, rollouts) for rollouts in ROLLOUTS}
    return rows_of(ours, theirs)


def rows_of(ours: dict[int, Side], theirs: dict[int, Side]) -> list[dict[str, Any]]:
    """Raises RuntimeError where the two did not do the same work."""
    rows = []
    for rollouts, side in ours.items():
        mine, other = side.tokens, theirs[rollouts].tokens
        if abs(mine - other) > SAME * other:
            raise RuntimeError(f"a rollout has {mine:.1f} tokens in the mean here and {other:.1f} with TRL: that is not the same work")
        for latency, seconds in side.seconds.items():
            name = f"GRPO step against TRL, {rollouts} rollouts, {f'{latency:g} s' if latency else 'instant'} tools"
            rows.append(row(name, seconds, "s", "TRL 1.16 GRPOTrainer", theirs[rollouts].seconds[latency], "training"))
    return rows


def _prepared(config: Config, folder: Path) -> Config:
    """The config with the tiny policy and the questions written to `folder`, where the run goes too."""
    build_policy(folder / "policy", config.atlas.seed)
    write_fvqa(folder / "train.parquet", world_of(config.atlas).samples("train", QUESTIONS))
    return replace(
        config,
        run=replace(config.run, dir=str(folder)),
        model=replace(config.model, path=str(folder / "policy")),
        data=replace(config.data, train=str(folder / "train.parquet"), test=str(folder / "train.parquet")),
    )


def _slow(server: Server, seconds: float) -> None:
    """A search takes `seconds` from now on."""
    server.take(search=0.6 * seconds, other=0.2 * seconds)


# ---------------------------------------------------------------------------------------------------------------- TRL


def _theirs(config: Config, server: Server, rollouts: int) -> Side:
    options = ["--model", config.model.path, "--data", config.data.train, "--base", server.base, "--rollouts", str(rollouts)]
    options += ["--latency", *map(str, LATENCIES[1:]), "--rounds", str(TRL_ROUNDS)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())}
    done = subprocess.run(
        [sys.executable, str(TRL), *options], capture_output=True, text=True, timeout=TRL_SECONDS, check=False, env=environment
    )
    if done.returncode != 0:
        raise RuntimeError(f"TRL's side failed: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    log.info("TRL, %d rollouts: %s", rollouts, found)
    return Side({float(latency): statistics.median(seconds) for latency, seconds in found["seconds"].items()}, found["tokens"])


# ---------------------------------------------------------------------------------------------------------------- ours


class FixedLength(VLLMEngine):
    """No end token ends a turn."""

    def _params(self, sampling: Sampling) -> SamplingParams:
        params = super()._params(sampling)
        params.ignore_eos, params.stop_token_ids = True, []
        params._all_stop_token_ids.clear()
        return params


class ScriptedRunner(SearchEnvRunner):
    """Samples every turn and says what the script says."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        settings = self._settings
        self._engine = FixedLength(settings, self._store, settings.run.namespace, seed=settings.run.seed)

    async def _episode(self, sample: Sample, index: int, workflow: str, sampling: Sampling) -> Trajectory:
        assert self._tools is not None
        engine = self._engine
        turns = iter(rollout(engine.codec.encode_turn, GROUP * int(sample.uid.rpartition("_")[2]) + index, sample.answers))

        async def generate(prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
            sampled = await engine.generate(prompt_ids, pictures, sampling)
            return replace(sampled, token_ids=next(turns), stopped=True)  # raises unless as many were sampled: see `seal`

        return await run_episode(
            sample,
            index=index,
            workflow=workflow,
            generate=TimedGenerate(generate, self._activity),
            tools=TimedTools(self._tools, self._activity),
            codec=engine.codec,
            prompts=self._prompts,
            limits=self._settings.agent,
            sampling=sampling,
        )


@contextmanager
def _algorithm(config: Config, server: Server, rollouts: int) -> Iterator[GRPO]:
    """A training run with tools of its own, whose caches know nothing."""
    pointed = pointed_at(config, server, topk=1)
    here = replace(
        pointed,
        run=replace(pointed.run, name=f"training-{rollouts}-{time.time_ns()}"),
        grpo=replace(pointed.grpo, groups_per_step=rollouts // GROUP),
    )
    tools = start_tools(here)
    algorithm = GRPOConfig.from_config(here).env_runners(env_runner_cls=ScriptedRunner).build_algo()
    assert isinstance(algorithm, GRPO)
    try:
        yield algorithm
    finally:
        algorithm.stop()
        stop_tools(here)
        del tools


def _ours(config: Config, server: Server, rollouts: int) -> Side:
    """Raises RuntimeError where a rollout did not search once, or was lost."""
    medians = {}
    _slow(server, 0.0)
    with _algorithm(config, server, rollouts) as algorithm:
        for _ in range(WARM_UP):
            algorithm.train()
        for latency in LATENCIES:
            _slow(server, latency)
            seconds = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                algorithm.train()
                seconds.append(time.perf_counter() - began)
            medians[latency] = statistics.median(seconds)
        records = [json.loads(line) for line in algorithm.metrics_file.path.read_text().splitlines()]
    _slow(server, 0.0)
    log.info("ours, %d rollouts: %s", rollouts, [{k: round(v, 3) for k, v in record["seconds"].items()} for record in records])
    return Side(medians, tokens_of(records, rollouts))


def tokens_of(records: Sequence[dict[str, Any]], rollouts: int) -> float:
    """Mean tokens of a rollout. Raises RuntimeError where not every rollout of every step searched once and answered in full turns."""
    whole = {"trajectories": rollouts, "searches_text": 1.0, "tool_failures": 0, "infra_errors": 0, "accuracy": 0.5}
    whole["sampled_tokens"] = rollouts * 2 * TURN_TOKENS
    for record in records:
        if broken := {name: record[name] for name, value in whole.items() if record[name] != value}:
            raise RuntimeError(f"step {record['step']} of ours went wrong: {broken}, expected {whole}")
    return statistics.mean(record["length_mean"] for record in records)
