"""The suite `faults`: does training with broken services learn what training with sound ones learns?

Six whole runs of jobs/train.py (three seeds, with and without faults) of a few steps each on Atlas. A fifth of all requests
fails, a tenth is refused with 429, a twentieth is never answered; a provider waits one second for an answer. The warm start
is made once per seed and lies in the cache of the run directory. Needs about 25 minutes on two cores; a run that is done
already is not done again.

Promise: a row is written only when no trajectory that was trained holds an infrastructure failure; every trained one is
read back from the run folder to see that.
"""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from jobs.benchmark_rows import row
from mmsr_ray.config import Config, to_yaml
from mmsr_ray.types import Outcome, ToolFailure

log = logging.getLogger("benchmark")

SEEDS = (0, 1, 2)
SETTINGS = (  # over the config's; the command line's come last
    "grpo.steps=20",
    "evaluation.workflows=[on_demand]",
    "evaluation.before_training=false",
    *(f"tools.{name}.timeout_seconds=1" for name in ("image_search", "image_host", "text_search", "reader", "summariser")),
)
FAULTS = {"failure_rate": 0.2, "rate_limit_rate": 0.1, "hang_rate": 0.05}
RUN_SECONDS = 1800.0
TRAIN = Path(__file__).with_name("train.py")


@dataclass(frozen=True, slots=True)
class Run:
    """What one training run came to."""

    accuracy: float  # on held-out questions, after RL
    trained: int  # trajectories in gradients
    broken: int  # of them, with an infrastructure failure in them
    lost: int  # trajectories that infrastructure broke for good, so that they were left out
    seconds: float  # of training and its evaluation


def faults(config: Config) -> list[dict[str, Any]]:
    """Rows over three seeds. Raises RuntimeError when a run fails or trained on an infrastructure failure."""
    pairs = [pair(config, seed) for seed in SEEDS]
    return rows_of(pairs, config.grpo.steps)


def pair(config: Config, seed: int) -> tuple[Run, Run]:
    """The same training with faults and without. Raises RuntimeError as `faults` does."""
    return run(config, seed, FAULTS), run(config, seed, {})


def run(config: Config, seed: int, rates: dict[str, float]) -> Run:
    name = f"faults-{seed}-{'broken' if rates else 'sound'}"
    here = replace(
        config,
        run=replace(config.run, name=name, seed=seed),
        atlas=replace(config.atlas, **rates),
        grpo=replace(config.grpo, groups_kept=config.grpo.groups_per_step),  # all, to be read back
    )
    settings = Path(config.run.dir, "benchmarks", f"{name}.yaml")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(to_yaml(here))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(TRAIN), "--config", str(settings)], capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"run {name} failed with status {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    found = measured(Path(config.run.dir, name))
    log.warning(
        "%s: %.0f s, accuracy %.3f, %d of %d rollouts lost", name, time.monotonic() - began, found.accuracy, found.lost, found.trained
    )
    return found


def measured(folder: Path) -> Run:
    """Read a finished run. Raises RuntimeError unless every trained trajectory is on disk and free of infrastructure failures."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    kept = ds.dataset(sorted((folder / "trajectories").glob("step_*.parquet"))).to_table(columns=["outcome", "reward", "turns"]).to_pylist()
    trained = sum(record["trajectories"] for record in records)
    if len(kept) != trained:
        raise RuntimeError(f"{folder}: {trained} trajectories were trained and {len(kept)} kept, so it cannot be said that all are sound")
    broken = sum(map(_broken, kept))
    if broken:
        raise RuntimeError(f"{folder}: {broken} of {trained} trained trajectories hold an infrastructure failure")
    (after,) = [found for found in summary["rows"] if found["name"] == "after RL, on_demand"]
    return Run(after["accuracy"], trained, broken, sum(record["infra_errors"] for record in records), summary["seconds"]["training"])


def _broken(trajectory: dict[str, Any]) -> bool:
    failures = {turn["failure"] for turn in trajectory["turns"]} - {None}
    infra = any(ToolFailure(failure).infra for failure in failures)
    return infra or trajectory["outcome"] == Outcome.INFRA_ERROR or trajectory["reward"] is None


def rows_of(pairs: list[tuple[Run, Run]], steps: int) -> list[dict[str, Any]]:
    """Means over the seeds; the single values stand in the row's reference."""
    broken, sound = ([p[side] for p in pairs] for side in (0, 1))
    trained, lost = sum(r.trained for r in broken), sum(r.lost for r in broken)
    load = f"20 % of requests fail, 10 % are refused with 429, 5 % hang; {steps} steps on Atlas, {len(pairs)} seeds"

    def each(runs: list[Run], field: str) -> str:
        return ", ".join(f"{getattr(r, field):.3g}" for r in runs)

    def mean(runs: list[Run], field: str) -> float:
        return statistics.mean(getattr(r, field) for r in runs)

    def against(field: str) -> str:
        return f"the same without faults; by seed {each(broken, field)} against {each(sound, field)}"

    made = [
        ("held-out accuracy after RL", mean(broken, "accuracy"), "share right", against("accuracy"), mean(sound, "accuracy")),
        ("infrastructure failures in gradients", sum(r.broken for r in broken), "trajectories", "trajectories trained", trained),
        ("trajectories lost to infrastructure and left out", lost, "trajectories", "all", trained + lost),
        ("seconds of training", mean(broken, "seconds"), "s", against("seconds"), mean(sound, "seconds")),
    ]
    return [row(f"{what}: {load}", value, unit, reference, base, "faults") for what, value, unit, reference, base in made]
