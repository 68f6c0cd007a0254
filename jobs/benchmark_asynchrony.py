"""The suite `asynchrony`: the same training, synchronous, asynchronous and with in-flight updates, under slow tools.

Three short runs of GRPO on Atlas with real engines, learners and tools over HTTP, whose requests take a log-normal time.
Nothing but `grpo.staleness` and `rollout.update` differs between them: the learning rate is 0, rollouts are seeded and
the web's latencies follow from what is asked, so that each run rolls out and learns the very same groups. The learner has
one core and the runner the other; the load is chosen so that the halves of a step are of comparable length. More than the
smaller half can be hidden: with staleness 1 a batch's last rollouts wait for their tools beside the next batch's first ones.

The policy knows the grammar from a short warm start, which lies in the cache of the run directory after the first time
(that takes some two minutes). The three runs take about five.

Promise: times are wall times of whole training steps, between two of them nothing is left out. A run whose halves are not
of comparable size, or that trained less than it was asked to, gives no rows.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.atlas_stage import demonstrations_version, make_demonstrations, world
from jobs.benchmark_rows import row
from jobs.connect import connect
from jobs.warm_start import warm_start
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.config import Config
from mmsr_ray.rollout.update import UpdateMode
from mmsr_ray.tools.actor import start_tools, stop_tools

log = logging.getLogger("benchmark")

SETTINGS = (  # over the config's; the command line's come last
    "sft.steps=160",
    "atlas.demonstrations=2500",
    "atlas.latency_seconds=0.2",
    "atlas.latency_tail=1.0",
    "learner.world_size=1",
    "learner.cpus_per_rank=1",
    "learner.gradient_checkpointing=true",
    "rollout.max_num_seqs=256",
    "grpo.groups_per_step=40",
    "grpo.lr=0",
    "grpo.lr_schedule=constant",
    "grpo.checkpoint_every=1000",
    "grpo.groups_kept=0",
    "evaluation.before_training=false",
)
MODES = {"sync": (0, UpdateMode.KEEP), "async": (1, UpdateMode.WAIT), "in-flight": (1, UpdateMode.KEEP)}
WARM_UP = 2  # steps that are not measured: kernels, connections, and the second batch that staleness 1 begins with
STEPS = 7
PARTS = ("generate", "tools", "idle", "learn", "sync")
GOAL = 0.8  # of the smaller half, hidden
COMPARABLE = 2.0  # neither half of a synchronous step is longer than so many times the other


@dataclass(frozen=True, slots=True)
class Run:
    """What one mode came to: means over its measured steps, in seconds."""

    step: float  # wall time from the end of one step to the end of the next
    parts: dict[str, float]  # of a step's record: PARTS, rollout, total
    overlap: float  # share of the learner's time in which the runner rolled out
    rollouts: int  # per step
    tokens: int  # sampled, of all measured steps


def asynchrony(config: Config) -> list[dict[str, Any]]:
    """Raises RuntimeError when the load is not what it says."""
    connect(config)
    with world(config) as here:
        model = warm_start(here, lambda: make_demonstrations(here), demonstrations_version(here), _told)
        here = replace(here, model=replace(here.model, path=model))
        runs = {mode: run(here, mode) for mode in MODES}
    return rows_of(runs)


def _told(step: int, steps: int, loss: float) -> None:
    if step % 20 == 0:
        log.warning("warm start %d/%d: loss %.2f", step, steps, loss)


def run(config: Config, mode: str) -> Run:
    staleness, update = MODES[mode]
    here = replace(
        config,
        run=replace(config.run, name=f"asynchrony-{mode}"),
        # one more than are played: the last ends with an evaluation, and its pipeline is not full
        grpo=replace(config.grpo, staleness=staleness, steps=WARM_UP + STEPS + 1),
        rollout=replace(config.rollout, update=update.value),
    )
    tools = start_tools(here)  # of its own: what one run has asked for is in no cache of another's
    algorithm = GRPOConfig.from_config(here).build_algo()
    try:
        ends = []
        for _ in range(WARM_UP + STEPS):
            algorithm.train()
            ends.append(time.monotonic())
    finally:
        algorithm.stop()
        stop_tools(here)
        del tools
    found = measured(Path(here.run.dir, here.run.name, "metrics.jsonl"), (ends[-1] - ends[WARM_UP - 1]) / STEPS)
    log.warning("%s: %s", mode, found)
    return found


def measured(metrics: Path, step: float) -> Run:
    """The means of the measured steps of a run's records; `step` is the mean of their wall seconds."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()][WARM_UP:]
    if len(records) != STEPS:
        raise RuntimeError(f"{metrics} has {len(records)} measured steps and not {STEPS}")

    def mean(name: str) -> float:
        return statistics.mean(record["seconds"][name] for record in records)

    return Run(
        step=step,
        parts={name: mean(name) for name in (*PARTS, "rollout", "total")},
        overlap=statistics.mean(record.get("overlap", 0.0) for record in records),
        rollouts=round(statistics.mean(record["trajectories"] for record in records)),
        tokens=sum(record["sampled_tokens"] for record in records),
    )


def rows_of(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """Seconds per step of each mode against sync, and how much of the smaller half each hides."""
    sync = runs["sync"]
    rollout, learn = sync.parts["rollout"], sync.parts["learn"]
    if max(rollout, learn) > COMPARABLE * min(rollout, learn):
        raise RuntimeError(f"the halves are not of comparable size: {rollout:.1f} s of rollout, {learn:.1f} s of learning")
    load = (
        f"{sync.rollouts} rollouts of the tiny policy, tool requests log-normal with a median of 0.2 s and a tail up to 3 s, "
        "learning with gradient checkpointing, so that the halves are of comparable length"
    )
    names = {"sync": "sync", "async": "async (staleness 1, update=wait)", "in-flight": "in-flight (staleness 1, update=keep)"}
    made = [
        row(
            f"seconds per training step, {names[mode]}: {load}",
            found.step, "s", f"sync; of {mode}: {_split(found)}", sync.step, "asynchrony",
        )
        for mode, found in runs.items()
    ]  # fmt: skip
    for mode in ("async", "in-flight"):
        hidden = (sync.step - runs[mode].step) / min(rollout, learn)
        name = f"share of the smaller of rollout and learning that is hidden, {names[mode]}: {load}"
        # more than the whole half is gained where the second batch in flight also fills the first one's waiting for tools
        halves = f"the goal, above 1 where batches also overlap each other; rollout {rollout:.2f} s and learning {learn:.2f} s in sync"
        made.append(row(name, hidden, "share", halves, GOAL, "asynchrony"))
    return made


def _split(found: Run) -> str:
    parts = " + ".join(f"{name} {found.parts[name]:.2f}" for name in PARTS)
    return f"{parts} s, rollouts during {found.overlap:.0%} of learning, {found.tokens} tokens sampled in {STEPS} steps"
