"""Measures a part of the system against a reference, prints a table and writes runs/benchmarks/<suite>.json.

    python jobs/benchmark.py suite=rollout [check=true] [--config jobs/configs/atlas.yaml] [key=value ...]

Suites:
    rollout     the runner against bare vLLM; what slow tools cost a step
    evaluation  an evaluation against bare vLLM
    weights     a weight update by model size, as a share of memory-copy speed
    tools       what the tool plane adds to slow services, and TRL's tool loop beside ours
    training    whole GRPO steps beside TRL's
    faults      training with broken services against training with sound ones, three seeds, about 25 minutes
    asynchrony  synchronous training against asynchronous and in-flight updates under slow tools
    recovery    seconds from each kind of kill to the next finished step
    growth      where time or memory stops being flat: prompts, trajectories in flight, runners
    learner     its compute core on this CPU, packed against padded, balanced ranks against unbalanced ones
    building    time and memory of the building of a data set as it grows
    serving     load over HTTP, overhead over bare vLLM, overload, weight swaps and kills under load
    gpu         learner, engine, weight updates, colocated steps, memory and numerics of one size (--size 7b); meant for one GPU,
                --size tiny runs its code on a CPU

With check=true a ratio that is a tenth worse than the committed one under tests/baselines fails. Rows are those of the design,
section 6: ratio is value / reference_value.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the jobs package, when this file is run as a script

import jobs  # noqa: F401, I001  (before Ray, see its docstring)
import ray

from jobs.atlas_stage import world
from jobs.benchmark_asynchrony import SETTINGS as ASYNCHRONY_SETTINGS
from jobs.benchmark_asynchrony import asynchrony
from jobs.benchmark_building import building
from jobs.benchmark_evaluation import evaluation
from jobs.benchmark_faults import SETTINGS as FAULTS_SETTINGS
from jobs.benchmark_faults import faults
from jobs.benchmark_gpu import SETTINGS as GPU_SETTINGS
from jobs.benchmark_gpu import PARTS, gpu
from jobs.benchmark_gpu_parts import STEPS
from jobs.benchmark_growth import growth
from jobs.benchmark_learner import learner
from jobs.benchmark_recovery import SETTINGS as RECOVERY_SETTINGS
from jobs.benchmark_recovery import recovery
from jobs.benchmark_rows import row
from jobs.benchmark_serving import SETTINGS as SERVING_SETTINGS
from jobs.benchmark_serving import serving
from jobs.benchmark_tools import tools
from jobs.benchmark_training import SETTINGS as TRAINING_SETTINGS
from jobs.benchmark_training import training
from jobs.benchmark_weights import weights
from jobs.connect import connect
from jobs.run_folder import with_absolute_paths
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.parts import start_runners
from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.data.reader import read_samples
from mmsr_ray.evaluation.summary import machine, write_json
from mmsr_ray.learner.shapes import SHAPES
from mmsr_ray.rollout.measure import bare_rate, runner_rate
from mmsr_ray.tools.actor import start_tools
from mmsr_ray.types import Sample, Ticket

log = logging.getLogger("benchmark")
ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 0.1  # a ratio may be this share worse than the committed one
REQUESTS_PER_CALL = 3  # a call to a tool is three requests in a row: upload, search, thumbnails; or search, read, summarise


def rollout(config: Config) -> list[dict[str, Any]]:
    """Tokens per second against vLLM's own generate, and the wall time of 32 rollouts with tools of one second."""
    samples = read_samples(config.data.train, config.data, questions=64, seed=config.run.seed)
    single = replace(config, agent=replace(config.agent, max_turns=1))  # one turn each, as bare vLLM does it: tools cost nothing
    bare = bare_rate(config, samples[:16], config.grpo.group_size)
    with_runner = _on_a_runner(single, lambda actor: runner_rate(actor, samples[:16], config.grpo.group_size))
    instant, slow = _on_a_runner(config, lambda actor: _tool_latency(config, actor, samples))
    return [
        row(
            "tokens per second of the env runner against bare vLLM, 128 rollouts of one turn with a picture",
            with_runner.per_second, "tokens/s", "vllm.LLM.generate on the same prompts", bare.per_second, "rollout",
        ),
        row(
            "seconds for 32 rollouts when every tool call takes 1 s, against instant tools",
            slow, "s", "the same load with instant tools", instant, "rollout",
        ),
    ]  # fmt: skip


def _on_a_runner(config: Config, measure: Callable[[Any], Any]) -> Any:
    runners = start_runners(config, GRPOConfig.from_config(config), store=None)
    try:
        runners.wait_until_up()
        return measure(runners.actor(runners.ids()[0]))
    finally:
        runners.stop()


def _tool_latency(config: Config, actor: Any, samples: list[Sample]) -> tuple[float, float]:
    """Median wall seconds of 4 groups of 8 with instant tools and with tools of one second; every round asks anew."""
    fresh = iter(samples)
    seconds: dict[float, list[float]] = {0.0: [], 1.0: []}
    for latency in (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0):
        _set_latency(config, latency / REQUESTS_PER_CALL)
        tickets = [Ticket(s.uid, 0, n, [ray.put(s)]) for n, s in enumerate([next(fresh) for _ in range(4)])]
        began = time.perf_counter()
        calls = [actor.sample_group.options(num_returns=2).remote(ticket, 8, 1)[0] for ticket in tickets]
        ray.get(calls, timeout=300)
        seconds[latency].append(time.perf_counter() - began)
    _set_latency(config, 0.0)
    return statistics.median(seconds[0.0][1:]), statistics.median(seconds[1.0])


def _set_latency(config: Config, seconds: float) -> None:
    base = config.tools.reader.url.removesuffix("/reader/")
    body = json.dumps({"latency": seconds}).encode()
    request = urllib.request.Request(f"{base}/faults", body, {"Content-Type": "application/json"}, method="PUT")
    with urllib.request.urlopen(request, timeout=10):
        pass


Suite = Callable[[Config], list[dict[str, Any]]]
ON_ATLAS: dict[str, Suite] = {
    "rollout": rollout,
    "evaluation": evaluation,
    "growth": growth,
    "serving": serving,
}  # Ray and the Atlas web run around them
BY_THEMSELVES: dict[str, Suite] = {
    "tools": tools,
    "training": training,
    "faults": faults,
    "weights": weights,
    "asynchrony": asynchrony,
    "recovery": recovery,
    "learner": learner,
    "building": building,
}
SUITES = [*ON_ATLAS, *BY_THEMSELVES, "gpu"]
SETTINGS = {  # of a suite, over the config's and under the command line's
    "training": TRAINING_SETTINGS,
    "faults": FAULTS_SETTINGS,
    "asynchrony": ASYNCHRONY_SETTINGS,
    "recovery": RECOVERY_SETTINGS,
    "gpu": GPU_SETTINGS,
    "serving": SERVING_SETTINGS,
}


def measure(suite: str, config: Config, args: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Rows, as they come."""
    if suite == "gpu":
        yield from gpu(config, args.size, args.parts, args.steps)
        return
    if suite in BY_THEMSELVES:
        yield BY_THEMSELVES[suite](config)
        return
    connect(config)
    with world(config) as here:
        running = start_tools(here)
        yield ON_ATLAS[suite](here)
        del running


def write(suite: str, rows: list[dict[str, Any]], folder: Path) -> Path:
    """The suite's JSON file."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    target = folder / "benchmarks" / f"{suite}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    missing = [r for r in rows if "not_available" in r]
    made = [r for r in rows if "not_available" not in r]
    content = {"suite": suite, "machine": machine(), "commit": commit, "date": datetime.now(UTC).date().isoformat(), "rows": made}
    write_json(target, content | ({"not_available": missing} if missing else {}))
    return target


def report(rows: list[dict[str, Any]]) -> None:
    """For people."""
    for r in rows:
        if "not_available" in r:
            line = f"{r['name']}: not available: {r['not_available']}"
        else:
            line = f"{r['name']}: {r['value']:g} {r['unit']} ({r['reference']}: {r['reference_value']:g}; ratio {r['ratio']:.2f})"
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def worse_than_baseline(suite: str, rows: list[dict[str, Any]]) -> list[str]:
    """Sentences on ratios that are a tenth worse than the committed ones. More is better for rates and shares, less for all else."""
    file = ROOT / "tests" / "baselines" / f"{suite}.json"
    if not file.is_file():
        raise ConfigError(f"there is no baseline for {suite}: commit a good runs/benchmarks/{suite}.json as {file.relative_to(ROOT)}")
    known = {r["name"]: r["ratio"] for r in json.loads(file.read_text())["rows"]}
    found = []
    for r in rows:
        if "not_available" not in r and r["name"] in known:
            more_is_better = r["unit"].endswith("/s") or r["unit"].startswith("share")
            limit = known[r["name"]] * (1 - TOLERANCE if more_is_better else 1 + TOLERANCE)
            if (r["ratio"] < limit) if more_is_better else (r["ratio"] > limit):
                found.append(f"{r['name']}: ratio {r['ratio']:.3f}, was {known[r['name']]:.3f}")
    return found


def _parts(text: str) -> list[str]:
    if unknown := set(chosen := text.split(",")) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "jobs" / "configs" / "atlas.yaml"))
    parser.add_argument("--size", choices=sorted(SHAPES), default="7b", help="of suite=gpu")
    parser.add_argument("--parts", type=_parts, default=PARTS, help=f"of suite=gpu, separated by commas: {','.join(PARTS)}")
    parser.add_argument("--steps", type=int, default=STEPS, help="of suite=gpu's part colocated")
    parser.add_argument("arguments", nargs="+", metavar="suite=NAME [check=true] [key=value]")
    args = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    own = dict(item.split("=", 1) for item in args.arguments if item.startswith(("suite=", "check=")))
    try:
        if own.get("suite") not in SUITES:
            raise ConfigError(f"suite={own.get('suite', '')!r}: choose one of {', '.join(SUITES)}")
        settings = [item for item in args.arguments if not item.startswith(("suite=", "check="))]
        config = with_absolute_paths(load(args.config, ["run.name=benchmark", *SETTINGS.get(own["suite"], ()), *settings]))
        rows: list[dict[str, Any]] = []
        for found in measure(own["suite"], config, args):
            report(found)
            rows += found
            write(own["suite"], rows, Path(config.run.dir))
        worse = worse_than_baseline(own["suite"], rows) if own.get("check") == "true" else []
    except ConfigError as error:
        log.error("%s", error)
        return 2
    for sentence in worse:
        log.error("worse than the baseline: %s", sentence)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
