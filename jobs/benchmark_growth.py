"""The suite `growth`: where time or memory stops being flat as a run grows.

Prompts in the stream (1 thousand to 1 million tiny rows, made on the fly), trajectories in flight on one real engine (32 to
512), and runners (1 to 4; scripted, because two cores feed no four engines: what is measured is the driver). Every row
stands beside the smallest size of its kind. Needs about six minutes on two cores, 3 GiB of memory and 1 GiB of disk.
"""

from __future__ import annotations

import asyncio
import io
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image
from ray.rllib.env.env_runner import EnvRunner

from jobs.benchmark_rows import row
from mmsr_ray.algorithms.feed import Feed
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.ledger import Ledger
from mmsr_ray.algorithms.parts import start_runners
from mmsr_ray.algorithms.runners import RunnerGroup
from mmsr_ray.algorithms.sampling import Sampler
from mmsr_ray.config import Config, DataConfig
from mmsr_ray.data.feeder import start_feeder
from mmsr_ray.data.reader import read_samples
from mmsr_ray.data.schema import FVQA
from mmsr_ray.rollout.measure import runner_rate
from mmsr_ray.types import GroupSummary, Outcome, Ticket, TrajectorySummary

PROMPTS = (1_000, 100_000, 1_000_000)
IN_FLIGHT = (32, 128, 512)
RUNNERS = (1, 2, 4)
ROW_GROUP = 50_000  # rows of a row group of the made-up set
HANDED_OUT = 1_000  # prompts, when their rate is measured
MIDDLE = 1 << 62  # of an epoch's order
GROUP_SECONDS = 0.1  # that a scripted runner takes for a group
PER_RUNNER = 8  # groups at a time
STEPS = 10  # of scripted sampling
SECONDS = 600.0  # deadline of anything here


def growth(config: Config) -> list[dict[str, Any]]:
    """Rows on prompts, trajectories in flight and runners. The tools and the web of `config` run."""
    return [*_prompts(), *_in_flight(config), *_runners(config)]


def _rows(what: str, unit: str, sizes: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """One row per size, beside the first. `what` has a {} for the size."""
    (small, base), *_ = sizes
    return [row(what.format(size), value, unit, f"with {small}", base, "growth") for size, value in sizes]


# ---------------------------------------------------------------------------------------------------- prompts


@dataclass(frozen=True, slots=True)
class Stream:
    """What a feeder of so many prompts costs."""

    first: float  # seconds from its start to the first prompt
    each: float  # seconds per prompt handed out from there on
    middle: float  # seconds from a state in the middle of an epoch to the next prompt
    mib: float  # most memory that its process ever held


def _prompts() -> list[dict[str, Any]]:
    _stream(PROMPTS[0])  # the first feeder pays for what Ray and its imports need once
    measured = [(f"{count:,} prompts in the stream", _stream(count)) for count in PROMPTS]

    def rows(what: str, unit: str, value: Callable[[Stream], float]) -> list[dict[str, Any]]:
        return _rows(what, unit, [(size, value(stream)) for size, stream in measured])

    return [
        *rows("seconds until the first prompt, {}", "s", lambda s: s.first),
        *rows("milliseconds per prompt handed out, {}", "ms", lambda s: 1000 * s.each),
        *rows("seconds to go on in the middle of an epoch, {}", "s", lambda s: s.middle),
        *rows("most memory of the data feeder, {}", "MiB", lambda s: s.mib),
    ]


def _stream(count: int) -> Stream:
    with tempfile.TemporaryDirectory() as folder:
        write_prompts(Path(folder, "prompts.parquet"), count)
        began = time.perf_counter()
        feeder: Any = start_feeder(folder, DataConfig(train=folder, test=folder), seed=0)
        _take(feeder, 1)
        first = time.perf_counter() - began
        began = time.perf_counter()
        _take(feeder, HANDED_OUT)
        each = (time.perf_counter() - began) / HANDED_OUT
        began = time.perf_counter()
        ray.get(feeder.restore.remote({"seed": 0, "epoch": 0, "rank": MIDDLE}), timeout=SECONDS)
        _take(feeder, 1)
        middle = time.perf_counter() - began
        mib: float = ray.get(feeder.__ray_call__.remote(_peak_mib), timeout=SECONDS)
        ray.kill(feeder)
    return Stream(first, each, middle, mib)


def _take(feeder: Any, count: int) -> None:
    deadline = time.monotonic() + SECONDS
    while count > 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the data feeder handed out too little in {SECONDS:.0f} s")
        count -= len(ray.get(feeder.next_tickets.remote(count), timeout=SECONDS))


def _peak_mib(actor: Any) -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_prompts(path: Path, count: int) -> None:
    """`count` questions in the FVQA schema, all about one small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), (9, 90, 9)).save(buffer, format="PNG")
    with pq.ParquetWriter(path, FVQA) as writer:
        for start in range(0, count, ROW_GROUP):
            numbers = range(start, min(start + ROW_GROUP, count))
            columns = {
                "prompt": [[{"content": f"What is the name of entity {n}?", "role": "user"}] for n in numbers],
                "images": [[{"bytes": buffer.getvalue(), "path": None}]] * len(numbers),
                "reward_model": [{"candidate_answers": "[]", "ground_truth": f"name {n}", "style": "rule"} for n in numbers],
                "data_source": ["growth"] * len(numbers),
                "image_urls": [None] * len(numbers),
                "data_id": [f"q{n}" for n in numbers],
                "category": [None] * len(numbers),
                "need": [None] * len(numbers),
            }
            writer.write_table(pa.table(columns, schema=FVQA))


# ---------------------------------------------------------------------------------------------------- trajectories in flight


def _in_flight(config: Config) -> list[dict[str, Any]]:
    """One real engine: wall time per sampled token, and memory of the runner's process."""
    size = config.grpo.group_size
    samples = read_samples(config.data.train, config.data, questions=max(IN_FLIGHT) // size, seed=config.run.seed)
    seconds, memory = [], []
    runners = start_runners(config, GRPOConfig.from_config(config), store=None)
    try:
        runners.wait_until_up()
        actor = runners.actor(runners.ids()[0])
        for count in IN_FLIGHT:
            rate = runner_rate(actor, samples[: count // size], size)
            name = f"{count} trajectories in flight on one engine"
            seconds.append((name, 1e6 / rate.per_second))
            memory.append((name, ray.get(actor.apply.remote(_peak_mib), timeout=SECONDS)))
    finally:
        runners.stop()
    return [
        *_rows("microseconds per sampled token, {}", "µs", seconds),
        *_rows("most memory of the runner's process, {}", "MiB", memory),
    ]


# ---------------------------------------------------------------------------------------------------- runners


class ScriptedRunner(EnvRunner):
    """Answers every prompt after a while with a group of plausible size, without an engine."""

    async def sample_group(self, ticket: Ticket, n: int, step: int) -> tuple[GroupSummary, bytes]:
        await asyncio.sleep(GROUP_SECONDS)
        rows = [replace(_PLAIN, uid=ticket.uid, index=index, correct=index % 2 == 0) for index in range(n)]
        return GroupSummary(ticket.uid, ticket.epoch, tuple(rows)), bytes(1 << 17)

    async def sync_weights(self, version: int, invitation: Any = None) -> None: ...

    async def ping(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] (as SearchEnvRunner does)
        return "pong"

    async def stop(self) -> None: ...  # pyright: ignore[reportIncompatibleMethodOverride]

    def assert_healthy(self) -> None: ...

    def sample(self, **kwargs: Any) -> Any: ...

    def get_spaces(self) -> dict[str, Any]:
        return {}


_PLAIN = TrajectorySummary(
    uid="", index=0, outcome=Outcome.OK, detail="", reward=1.0, correct=True, well_formed=True, image_searches=0, text_searches=0,
    tool_failures=0, turns=1, length=100, sampled_tokens=20, pictures=1, version_min=0, version_max=0, generate_seconds=1.0,
    tool_seconds=0.5, cost_usd=0.0,
)  # fmt: skip


@ray.remote(num_cpus=0)
class Tickets:
    """A feeder without data."""

    def __init__(self) -> None:
        self._given = 0

    def state(self) -> dict[str, str]:
        return {"questions": ""}

    def next_tickets(self, count: int) -> list[Ticket]:
        self._given += count
        return [Ticket(f"q{n}", 0, n, []) for n in range(self._given - count, self._given)]


def _runners(config: Config) -> list[dict[str, Any]]:
    """Groups per second through the driver and its CPU time for each; a step is as many groups as all runners hold."""
    rates, costs = [], []
    for count in RUNNERS:
        with _scripted(config, count) as (sampler, ledger):
            began, cpu = time.perf_counter(), time.process_time()
            for _ in range(STEPS):
                sampler.reset_step()
                ledger.trained(sampler.collect(time.monotonic() + SECONDS))
            groups = STEPS * count * PER_RUNNER
            rates.append((count, groups / (time.perf_counter() - began)))
            costs.append((count, (time.process_time() - cpu) / groups))
    one = rates[0][1]
    scripted = f"scripted runners of {PER_RUNNER} groups at a time, {GROUP_SECONDS:g} s each"
    return [
        *(
            row(f"groups per second, {count} {scripted}", rate, "groups/s", f"{count} times one of them", count * one, "growth")
            for count, rate in rates
        ),
        *_rows("CPU milliseconds of the driver per group, {}", "ms", [(f"{count} {scripted}", 1000 * cost) for count, cost in costs]),
    ]


@contextmanager
def _scripted(config: Config, count: int) -> Iterator[tuple[Sampler, Ledger]]:
    here = replace(
        config,
        rollout=replace(config.rollout, num_runners=count, cpus_per_runner=0.0, max_inflight_groups=PER_RUNNER),
        grpo=replace(config.grpo, groups_per_step=count * PER_RUNNER, staleness=0),
    )
    rllib = GRPOConfig.from_config(here).env_runners(env_runner_cls=ScriptedRunner)
    runners = RunnerGroup(config=rllib, max_concurrency=PER_RUNNER + 8, start_seconds=SECONDS)
    feed = Feed(lambda state: Tickets.remote(), seed=0)  # type: ignore[attr-defined]
    try:
        runners.wait_until_up()
        ledger = Ledger(here.grpo.groups_per_step, 0, here.grpo.loss_limit, steps=STEPS + 1)
        sampler = Sampler(here, runners, feed, ledger, tend=lambda: None)
        ledger.trained(sampler.collect(time.monotonic() + SECONDS))  # the first step starts processes
        yield sampler, ledger
    finally:
        runners.stop()
        ray.kill(feed.actor)
