"""The suite `recovery`: seconds from each kind of kill until the next training step is finished.

A small GRPO on Atlas with an untrained tiny policy: two runners with real engines, one learner rank, a checkpoint after each
step. Parts of a run are killed (SIGKILL, or `ray.kill`, which is the same) right before a step is asked for; the node that is
lost is a second raylet on this machine with a runner and the learner on it. A trial and a whole submission are killed in a
process of their own, where Tune and a second submission bring them back. Beside each stands a plain step of the same run.
Needs about seven minutes on two cores and 6 GiB of memory.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from jobs.atlas_stage import world
from jobs.benchmark_rows import row
from jobs.connect import connect
from mmsr_ray.algorithms.grpo import GRPO
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.parts import bundles
from mmsr_ray.config import Config, to_yaml
from mmsr_ray.tools.actor import start_tools

log = logging.getLogger("benchmark")
ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (  # over the config's; the command line's come last
    "grpo.steps=100",
    "grpo.groups_per_step=8",
    "grpo.group_size=4",
    "grpo.checkpoint_every=1",
    "grpo.keep_checkpoints=1",
    "rollout.num_runners=2",
    "rollout.cpus_per_runner=0.5",
    "learner.world_size=1",
    "evaluation.before_training=false",
    "evaluation.workflows=[on_demand]",
    "evaluation.questions=4",
)
SECONDS = 600.0  # deadline of any step
PLAIN_STEPS = 3
LOAD = "8 groups of 4, tiny policy on Atlas, 2 runners, 1 learner rank"
AWAY, NOT_AWAY = {"place": "away"}, {"place": "!away"}
SCRIPT = """
import sys
from pathlib import Path
import jobs
from jobs.connect import connect
from jobs.reinforce import reinforce
from mmsr_ray.config import load
from mmsr_ray.tools.actor import start_tools
config = load(sys.argv[1])
connect(config)
tools = start_tools(config)
reinforce(config, config.model.path, Path(config.run.dir, config.run.name))
"""


def recovery(config: Config) -> list[dict[str, Any]]:
    """Rows by kind of kill. Raises RuntimeError when a run does not come back."""
    connect(config)
    with world(config) as here:
        plain, killed = _parts(_named(here, "parts"))
        ray.shutdown()
        whole_plain, whole = _wholes(_named(here, "whole"))
    return [
        *(_row(kind, seconds, plain) for kind, seconds in killed.items()),
        *(_row(kind, seconds, whole_plain) for kind, seconds in whole.items()),
    ]


def _named(config: Config, name: str) -> Config:
    """A run of its own, that starts at its beginning."""
    return replace(config, run=replace(config.run, name=f"recovery-{name}-{int(time.time())}"))


def _row(kind: str, seconds: float, plain: float) -> dict[str, Any]:
    return row(f"seconds from the kill of {kind} to the end of the next step: {LOAD}", seconds, "s", "a plain step", plain, "recovery")


# ---------------------------------------------------------------------------------------------------- the parts of a run


def _parts(config: Config) -> tuple[float, dict[str, float]]:
    """(seconds of a plain step, seconds after each kill)."""
    tools = start_tools(config)
    with _node() as away:
        trial = _start_trial(config)
        run = _Run(trial, config)
        run.step()
        plain = statistics.median(run.step() for _ in range(PLAIN_STEPS))
        killed = {}
        for kind, kill in _kills(config).items():
            killed[kind] = run.after(kill)
            log.warning("after the kill of %s: %.1f s", kind, killed[kind])
        with _node():  # where Ray will put what is lost
            killed["a node with a runner and the learner"] = run.after(lambda _: away.kill_all_processes(check_alive=False, wait=True))
            ray.get(trial.stop.remote(), timeout=SECONDS)
            ray.kill(trial)
    del tools
    return plain, killed


class _Run:
    """A trial whose steps are asked for one by one."""

    def __init__(self, trial: Any, config: Config) -> None:
        self._trial = trial
        self._checkpoint = str(Path(config.run.dir, config.run.name, "benchmark-checkpoint").absolute())

    def step(self) -> float:
        began = time.perf_counter()
        ray.get(self._trial.train.remote(), timeout=SECONDS)
        return time.perf_counter() - began

    def after(self, kill: Callable[[Any], object]) -> float:
        """Seconds of the step that follows a kill, with everything up and a checkpoint written before it."""
        deadline = time.monotonic() + SECONDS
        while ray.get(self._trial.__ray_call__.remote(_missing), timeout=SECONDS):
            if time.monotonic() > deadline:
                raise RuntimeError("a runner did not come back after the kill before this one")
            time.sleep(0.5)
        ray.get(self._trial.save_to_path.remote(self._checkpoint), timeout=SECONDS)
        kill(self._trial)
        return self.step()


def _missing(algorithm: GRPO) -> int:
    """Runners that are not up."""
    algorithm.parts.runners.revive()
    return len(algorithm.parts.runners.ids()) - len(algorithm.parts.runners.healthy())


def _kills(config: Config) -> dict[str, Callable[[Any], object]]:
    def inside(kill: Callable[[GRPO], object]) -> Callable[[Any], object]:
        return lambda trial: ray.get(trial.__ray_call__.remote(kill), timeout=SECONDS)

    def tool(name: str) -> Callable[[Any], object]:
        actor: Any = ray.get_actor(f"tools:{config.run.name}:{name}", namespace=config.run.namespace)
        return lambda _: ray.kill(actor, no_restart=False)

    return {
        "a runner": inside(lambda algorithm: ray.kill(algorithm.parts.runners.actor(1), no_restart=False)),
        "an engine process": inside(lambda algorithm: ray.get(algorithm.parts.runners.actor(1).apply.remote(_kill_engine))),
        "a tool actor": tool("0"),
        "the keeper of limits and money": tool("quota"),
        "the weight store": inside(lambda algorithm: ray.kill(algorithm.parts.store)),
        "the data feeder": inside(lambda algorithm: ray.kill(algorithm.parts.feed.actor)),
        "a learner rank": inside(lambda algorithm: ray.kill(algorithm.parts.learners.ranks[0])),
    }


def _kill_engine(runner: Any) -> None:
    for child in multiprocessing.active_children():
        child.kill()


def _start_trial(config: Config) -> Any:
    """GRPO as an actor in a placement group, as Tune starts it; the second runner and the learner on the node to be lost."""
    needed = bundles(config).bundles
    group = placement_group(needed, bundle_label_selector=[NOT_AWAY, NOT_AWAY, AWAY, AWAY])
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True)
    actor = ray.remote(GRPO).options(num_cpus=config.grpo.driver_cpus, scheduling_strategy=place)
    return actor.remote(config=GRPOConfig.from_config(config))


@contextmanager
def _node() -> Iterator[Node]:
    """One more node of this process's Ray, on this machine."""
    params = RayParams(
        gcs_address=ray.get_runtime_context().gcs_address, num_cpus=2, object_store_memory=300 << 20, labels=AWAY,
        min_worker_port=0, max_worker_port=0, node_manager_port=0,
    )  # fmt: skip
    node = Node(params, head=False, shutdown_at_exit=True, spawn_reaper=False)
    try:
        yield node
    finally:
        node.kill_all_processes(check_alive=False, wait=True)


# ---------------------------------------------------------------------------------------------------- the trial and the submission


def _wholes(config: Config) -> tuple[float, dict[str, float]]:
    """(seconds of a plain step, seconds after a kill of the trial and of the submission)."""
    with _submission(config) as first:
        first.wait_for(PLAIN_STEPS + 1)
        plain = statistics.median(first.seconds()[1:])
        (trial,) = [p for p in psutil.Process(first.process.pid).children(recursive=True) if "ray::GRPO" in " ".join(p.cmdline())]
        trial.kill()
        killed = {"the trial, which Tune starts anew": first.time_of_the_next_step()}
        first.process.kill()
        with _submission(config) as second:
            killed["the whole submission, which is submitted again at once"] = second.time_of_the_next_step()
    return plain, killed


class _Submission:
    """A training run in a process of its own, seen through the records in its run folder."""

    def __init__(self, config: Config, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._records = Path(config.run.dir, config.run.name, "metrics.jsonl")

    def seconds(self) -> list[float]:
        """Of each finished step."""
        lines = self._records.read_text().splitlines() if self._records.is_file() else []
        return [json.loads(line)["seconds"]["total"] for line in lines]

    def wait_for(self, step: int) -> None:
        deadline = time.monotonic() + SECONDS
        while len(self.seconds()) < step:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the run did not come to step {step}: {self.process.poll()=}")
            time.sleep(0.05)

    def time_of_the_next_step(self) -> float:
        began = time.perf_counter()
        self.wait_for(len(self.seconds()) + 1)
        return time.perf_counter() - began


@contextmanager
def _submission(config: Config) -> Iterator[_Submission]:
    file = Path(config.run.dir, "benchmarks", f"{config.run.name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(to_yaml(config))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(file)], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        yield _Submission(config, process)
    finally:
        process.terminate()
        process.wait(timeout=SECONDS)
