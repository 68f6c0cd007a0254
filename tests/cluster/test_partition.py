"""Training over machines with addresses of their own: one is cut off from the others, comes back, and dies; the head dies and comes back.

A cut is not a death. No connection is closed and nothing on the machine ends: the Algorithm there goes on, and reaches the
run folder, while Tune starts another on a machine that it can reach. What is trained must be what one of them says.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mmsr_ray.atlas.prepare import world_of
from mmsr_ray.config import Config, ProviderConfig, load, to_yaml
from mmsr_ray.data.schema import write_fvqa
from mmsr_ray.evaluation.trajectories import read_trajectories
from tests.algorithms.autoscaling import QUICK
from tests.algorithms.conftest import QUESTIONS, lines, run_config
from tests.cluster.namespaces import NETWORK, Lan, Machine, missing

ROOT = Path(__file__).resolve().parents[2]
ATLAS_YAML = ROOT / "jobs" / "configs" / "atlas.yaml"
SECONDS = 300.0  # of any wait here; 40 at most on a quiet machine
GROUPS = 3  # a step
EACH = 2  # CPUs of a worker, of which a rank takes RANK and a runner RUNNER: a trial needs two workers, its ranks lie on both
RANK, RUNNER = 1.5, 0.5
AWAY_SECONDS = 20.0  # of a head that is made anew

pytestmark = [pytest.mark.heavy, pytest.mark.long, pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture
def lan() -> Iterator[Lan]:
    quick = QUICK | {"RAY_health_check_timeout_ms": "1000"}  # packets that vanish are waited for so long, each time
    with Lan(RAY_AUTH_MODE="disabled", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", **quick) as made:
        yield made


def atlas_config(model: Path, folder: Path) -> Config:
    """Three groups a step on Atlas, whose web is reached from all machines; one runner and one that comes and goes with a machine."""
    atlas = load(ATLAS_YAML)
    config = run_config(model, folder)
    world = replace(atlas.atlas, host="node", dir=str(folder / "atlas"))
    config.atlas, config.tools = world, atlas.tools
    config.tools.private_hosts = [f"{NETWORK}.0/24"]
    config.tools.reader, config.tools.actors = ProviderConfig(kind="trafilatura", url=""), 2
    write_fvqa(folder / "train.parquet", world_of(world).samples("train", QUESTIONS))
    config.rollout.num_runners, config.rollout.max_runners, config.rollout.cpus_per_runner = 1, 2, RUNNER
    config.learner.world_size, config.learner.cpus_per_rank = 2, RANK
    config.grpo.steps, config.grpo.checkpoint_every, config.grpo.groups_per_step = 10_000, 2, GROUPS
    config.evaluation.before_training = False
    return config


class Job:
    """A submission from the machine `at`, seen through its run folder."""

    def __init__(self, config: Config, head: Machine, at: Machine) -> None:
        file = Path(config.run.dir) / "config.yaml"
        file.write_text(to_yaml(config))
        self.folder = Path(config.run.dir, config.run.name)
        self._log = at.folder / "job.log"
        command = [sys.executable, "-m", "tests.cluster.train", str(file), at.address]
        self._process = at.popen(command, log=self._log.name, RAY_ADDRESS=head.ray_address)

    def records(self) -> list[dict]:
        return lines(self.folder) if (self.folder / "metrics.jsonl").is_file() else []

    def step(self) -> int:
        return max((record["step"] for record in self.records()), default=0)

    def runners(self) -> int:
        return self.records()[-1]["runners"] if self.records() else 0

    def wait(self, what: str, happened: Callable[[], bool]) -> float:
        began = time.monotonic()
        while not happened():
            said = f"{what}: not within {SECONDS:.0f} s, at step {self.step()} with {self.runners()} runners"
            assert time.monotonic() - began < SECONDS and self._process.poll() is None, f"{said}\n{self._log.read_text()[-4000:]}"
            time.sleep(0.1)
        print(f"{what}: {time.monotonic() - began:.1f} s, step {self.step()}")
        return time.monotonic() - began

    def more_steps(self, count: int, what: str) -> None:
        wanted = self.step() + count
        self.wait(what, lambda: self.step() >= wanted)


def processes(machine: Machine, what: str) -> list[psutil.Process]:
    """Those on the machine that bear this name."""
    found = []
    for pid in machine.pids():
        try:
            if what in " ".join((process := psutil.Process(pid)).cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def runs(machine: Machine, what: str) -> bool:
    return bool(processes(machine, what))


def _wait_for(workers: list[Machine]) -> None:
    """Until all have joined: a submission that does not fit on what is there ends at once where no autoscaler runs."""
    deadline = time.monotonic() + SECONDS
    while not all(runs(worker, "ray::DashboardAgent") for worker in workers):
        assert time.monotonic() < deadline, "a node does not start"
        time.sleep(0.2)


def test_a_machine_that_is_cut_off_comes_back_and_dies_costs_no_prompt(lan: Lan, tiny_model: Path, tmp_path: Path) -> None:
    head, *workers = [lan.machine() for _ in range(4)]
    head.ray_head(cpus=0)
    for worker in workers:
        worker.ray_node(head, cpus=EACH)
    _wait_for(workers)
    job = Job(atlas_config(tiny_model, tmp_path), head, at=head)
    job.wait("both runners are up", lambda: job.step() >= 3 and job.runners() == 2)
    (first,) = [worker for worker in workers if runs(worker, "ray::GRPO")]
    assert sum(runs(worker, "ray::LearnerRank") for worker in workers) == 2
    owner = (job.folder / "owner").read_text()

    first.cut()
    job.wait("another Algorithm owns the folder", lambda: (job.folder / "owner").read_text() != owner)
    assert runs(first, "ray::GRPO"), "the first one lives, where nobody can reach it"
    job.wait("it has begun at the checkpoint", lambda: job.runners() == 1)
    job.more_steps(3, "it goes on")
    first.heal()
    job.wait("what was cut off ends itself", lambda: not runs(first, "ray::GRPO"))
    job.wait("a new runner joins", lambda: job.runners() == 2)
    job.more_steps(2, "both work")

    first.kill()
    job.wait("the death is noticed", lambda: job.runners() == 1)
    job.more_steps(2, "the rest goes on")

    records = job.records()
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    versions = [record["version"] for record in records]
    assert versions == sorted(set(versions))
    assert sum(record["given_up"] for record in records) == 0
    assert any(record["tools"]["calls"] > 0 for record in records[-4:]), "the web of the head is reached from the workers"
    exactly_once(job.folder, len(records))


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server on this machine")
def test_a_head_that_dies_and_comes_back_on_redis_finds_the_run_still_going(lan: Lan, tiny_model: Path, tmp_path: Path) -> None:
    """The job's own process is elsewhere, as it is in our manifests: what dies is the head alone."""
    head, store, *workers = [lan.machine() for _ in range(4)]
    redis = store.redis()
    head.ray_head(cpus=0, redis=redis)
    for worker in workers:
        worker.ray_node(head, cpus=EACH, resources='{"tools": 1}')
    _wait_for(workers)
    config = atlas_config(tiny_model, tmp_path)
    config.rollout.num_runners, config.rollout.max_runners, config.learner.world_size = 2, 0, 1
    config.tools.node = "tools"  # as in our manifests: tool actors on the head's machine die with it, and only a head starts them anew
    job = Job(config, head, at=workers[0])
    job.wait("both runners are up", lambda: job.step() >= 3 and job.runners() == 2)
    owner = (job.folder / "owner").read_text()

    head.kill()
    before = job.step()
    time.sleep(AWAY_SECONDS)
    print(f"steps in {AWAY_SECONDS:.0f} s without a head: {job.step() - before}")
    assert job.step() - before >= 5, "it stands still"
    head.ray_head(cpus=0, redis=redis)
    job.more_steps(10, "a new head is up, and it goes on")
    assert (job.folder / "owner").read_text() == owner, "under the same Algorithm"

    (trial,) = [process for worker in workers for process in processes(worker, "ray::GRPO")]
    trial.kill()
    job.wait("the new head lets Tune start another Algorithm", lambda: (job.folder / "owner").read_text() != owner)
    job.more_steps(10, "it goes on from the checkpoint")
    records = job.records()
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    versions = [record["version"] for record in records]
    assert versions == sorted(set(versions))
    exactly_once(job.folder, len(records))


def exactly_once(folder: Path, steps: int) -> None:
    """The uids of the first `steps` steps are those of whole epochs, one after the other. Steps whose file is not written yet may be missing."""
    rows = [row for row in read_trajectories(folder / "trajectories") if row.step is not None and row.step <= steps]
    groups = Counter(row.uid for row in rows if row.index == 0)
    missing = GROUPS * (steps - len({row.step for row in rows}))
    assert len(groups) == QUESTIONS
    assert max(groups.values()) <= math.ceil(GROUPS * steps / QUESTIONS), "trained twice in an epoch"
    assert min(groups.values()) >= GROUPS * steps // QUESTIONS - missing, "lost"
