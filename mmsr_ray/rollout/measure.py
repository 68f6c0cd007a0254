"""What a rollout costs beyond bare vLLM, and what a weight update costs: measurements for the benchmark job.

Promise: both sides of a comparison do the same work. `bare_rate` gives vLLM's own offline `LLM.generate` the very
prompts, pictures and length limits that `runner_rate` sends through tickets, episodes, sealing, scoring and Ray.
"""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
from PIL import Image
from ray.actor import ActorHandle

from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.tokens import Transcript
from mmsr_ray.config import Config
from mmsr_ray.rollout.engine import load_codec, spawn
from mmsr_ray.types import GroupSummary, Sample, Ticket

DEADLINE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Sampled tokens in wall seconds, the median of several rounds."""

    tokens: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.tokens / self.seconds


def runner_rate(runner: ActorHandle, samples: Sequence[Sample], group_size: int, rounds: int = 3) -> Rate:
    """Groups of all samples at once through one SearchEnvRunner; one round more goes first, unmeasured."""
    tickets = [Ticket(sample.uid, 0, rank, [ray.put(sample)]) for rank, sample in enumerate(samples)]

    def play() -> int:
        calls = [cast(Any, runner).sample_group.options(num_returns=2).remote(ticket, group_size, 1) for ticket in tickets]
        summaries: list[GroupSummary] = ray.get([summary for summary, _ in calls], timeout=DEADLINE_SECONDS)
        return sum(t.sampled_tokens for summary in summaries for t in summary.trajectories)

    return _median(play, rounds)


def bare_rate(
    config: Config, samples: Sequence[Sample], group_size: int, rounds: int = 3, *, direct: bool = False, threads: int = 0
) -> Rate:
    """The first turns of the same rollouts by `vllm.LLM.generate` with vLLM's own defaults, in a process of its own.

    `direct`: the only turns of the workflow of that name, greedy as in an evaluation. `threads` of a CPU, on any of its cores; 0: vLLM's
    own choice, which leaves a core to others.
    """
    task = ray.remote(num_cpus=0, num_gpus=config.rollout.gpus_per_runner, max_calls=1)(_bare).remote(
        config, list(samples), group_size, rounds, direct, threads
    )
    return ray.get(task, timeout=DEADLINE_SECONDS)


def _bare(config: Config, samples: list[Sample], group_size: int, rounds: int, direct: bool, threads: int) -> Rate:
    if threads:
        os.environ.update(OMP_NUM_THREADS=str(threads), VLLM_CPU_OMP_THREADS_BIND="nobind")
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        spawn()
    codec, prompts = load_codec(config), PromptSet.load(config.agent.prompts)
    first = prompts.direct if direct else prompts.round_1
    requests = []
    for sample in samples:
        transcript = Transcript(codec)
        transcript.add_user(first(sample.question, codec.user_picture(sample.image)))
        images = [Image.open(io.BytesIO(picture.data)).convert("RGB") for picture in transcript.pictures]
        requests += [{"prompt_token_ids": transcript.compact_ids(), "multi_modal_data": {"image": images}}] * group_size
    llm = LLM(
        model=config.model.path,
        dtype=config.model.dtype,  # type: ignore[arg-type]
        max_model_len=config.rollout.max_model_len or config.agent.max_total_tokens,
        max_num_seqs=config.rollout.max_num_seqs,
        enforce_eager=config.rollout.enforce_eager,
        gpu_memory_utilization=config.rollout.gpu_memory_utilization,
        kv_cache_memory_bytes=config.rollout.kv_cache_gib << 30 if current_platform.is_cpu() else None,
        limit_mm_per_prompt={"image": 1, "video": 0},
        generation_config="vllm",
    )
    sampling = SamplingParams(
        temperature=0.0 if direct else config.rollout.temperature,
        max_tokens=config.agent.max_turn_tokens,
        stop_token_ids=[codec.end_id],
    )

    def play() -> int:
        return sum(len(output.outputs[0].token_ids) for output in llm.generate(requests, sampling, use_tqdm=False))

    return _median(play, rounds)


def update_seconds(runner: ActorHandle, publish: Callable[[], int], updates: int) -> list[dict[str, float]]:
    """Wall seconds by part (`VLLMEngine.sync`) of each of several weight updates of one runner; `publish` stores weights and returns
    their version.
    """
    return [ray.get(cast(Any, runner).sync_weights.remote(publish()), timeout=DEADLINE_SECONDS) for _ in range(updates)]


def _median(play: Callable[[], int], rounds: int) -> Rate:
    """Median by speed; `play` returns its number of tokens."""
    play()
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        tokens = play()
        rates.append(Rate(tokens, time.perf_counter() - began))
    middle = statistics.median_low([rate.per_second for rate in rates])
    return next(rate for rate in rates if rate.per_second == middle)
