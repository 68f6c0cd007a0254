"""Elastic runners under Ray's autoscaler: nodes come with the work and go without it; one that is lost is replaced."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.rllib.env.env_runner import EnvRunner

from mmsr_ray.algorithms.feed import Feed
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.ledger import Entry, Ledger
from mmsr_ray.algorithms.runners import RunnerGroup
from mmsr_ray.algorithms.sampling import Sampler
from tests.algorithms.autoscaling import QuietAutoscalingCluster
from tests.algorithms.scripted import Feeder, ScriptedRunner, plain_config

pytestmark = pytest.mark.heavy

SECONDS = 120.0  # of any wait here; a few on a quiet machine
GROUPS = 4


@pytest.fixture(scope="module")
def autoscaled() -> Iterator[None]:
    """A Ray whose head has one CPU and whose autoscaler may add two nodes of one CPU, and removes those idle for three seconds."""
    with tempfile.TemporaryDirectory(prefix="el", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = QuietAutoscalingCluster(Path(folder), max_workers=2, idle_minutes=0.05)
        try:
            cluster.start()
            ray.init(cluster.address, namespace="mmsr", log_to_driver=False)
            yield
            ray.shutdown()
        finally:
            cluster.shutdown()


def kill_node(runner: EnvRunner) -> None:
    """What a spot market does to the node of a runner: its raylet is gone, and with it all of its processes."""
    os.kill(os.getppid(), signal.SIGKILL)


def nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


class Run:
    """Steps of sampling without a learner; counts what was handed to it."""

    def __init__(self, runners: RunnerGroup, uids: list[str], marks: Path, *, staleness: int = 0, idle_seconds: float = 0.0) -> None:
        config = plain_config()
        config.grpo.groups_per_step, config.rollout.idle_seconds = GROUPS, idle_seconds
        self.runners, self.ledger, self.uids = runners, Ledger(GROUPS, staleness, config.grpo.loss_limit, steps=999), uids
        self.feed = Feed(lambda state: Feeder.remote(uids, marks, state), seed=0)  # type: ignore[arg-type]
        self.sampler = Sampler(config, runners, self.feed, self.ledger, tend=lambda: None)
        self.trained: list[str] = []

    def step(self) -> list[Entry]:
        batch = self.sampler.collect(time.monotonic() + SECONDS)
        self.ledger.trained(batch)
        self.runners.sync(self.ledger.version, timeout=SECONDS)
        self.trained += [entry.ticket.uid for entry in batch]
        return batch

    def steps_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not happened():
            assert time.monotonic() < deadline, "it did not happen"
            self.step()
            time.sleep(0.1)  # else they run out of prompts

    def learn_until(self, happened: Callable[[], bool]) -> None:
        """The learner takes long: as GRPO does then, runners are kept as busy as staleness allows."""
        deadline = time.monotonic() + SECONDS
        while not happened():
            assert time.monotonic() < deadline, "it did not happen"
            self.sampler.pump(timeout=0.05)

    def exactly_once(self) -> bool:
        """Every prompt that was handed out is trained, once, or still charged."""
        handed = {uid for _, uid in self.ledger.charged_keys()} | set(self.trained)
        return set(Counter(self.trained).values()) == {1} and handed == set(self.uids[: len(handed)])


def test_work_grows_the_fleet_and_idleness_shrinks_it_while_training_goes_on(autoscaled: None, tmp_path: Path) -> None:
    config = plain_config()
    config.rollout.num_runners, config.rollout.cpus_per_runner = 1, 1.0
    rllib = GRPOConfig.from_config(config).env_runners(env_runner_cls=ScriptedRunner)
    runners = RunnerGroup(config=rllib, max_concurrency=100, start_seconds=SECONDS)
    runners.wait_until_up()
    # small groups, which this process holds: a node keeps those that lie in its object store, and is not idle until they are trained
    run = Run(runners, [f"plain-{i}" for i in range(8000)], tmp_path, staleness=1, idle_seconds=2.0)
    runners.grow(2)
    run.steps_until(lambda: len(runners.healthy()) == 3)
    assert nodes() == 3, "two came because there was work for them"
    for _ in range(2):
        run.step()

    run.learn_until(lambda: nodes() == 1)  # staleness lets nothing more out, so there is nothing to do
    assert runners.ids() == [1]
    ready = [entry.result.group for entry in run.ledger.ready()]
    assert len(ready) == 2 * GROUPS and len(ray.get(ready, timeout=10)) == len(ready), "what they made outlives them"

    run.steps_until(lambda: len(runners.healthy()) == 3)
    assert nodes() == 3, "they came again with the work"
    runners.stop()
    assert run.ledger.reset_counts()["given_up"] == 0
    assert run.exactly_once()


def test_a_runner_joins_with_its_node_and_leaves_with_it(autoscaled: None, tmp_path: Path) -> None:
    config = plain_config()
    config.rollout.num_runners, config.rollout.cpus_per_runner = 1, 1.0
    rllib = GRPOConfig.from_config(config).env_runners(env_runner_cls=ScriptedRunner)
    runners = RunnerGroup(config=rllib, max_concurrency=100, start_seconds=SECONDS)
    runners.wait_until_up()
    # every batch has a late group, so that others are ready on their runner's node when that is lost
    run = Run(runners, [f"{'late' if i % GROUPS == 0 else 'big'}-{i}" for i in range(4000)], tmp_path)
    run.steps_until(lambda: nodes() == 1)  # those of the test before are gone

    runners.grow(1)
    began = time.monotonic()
    run.step()
    assert time.monotonic() - began < SECONDS / 4, "a runner that no node has room for holds nobody up"
    run.steps_until(lambda: runners.healthy() == [1, 2])
    assert nodes() == 2

    while len(run.ledger.ready()) < GROUPS - 1:
        run.sampler.pump(timeout=0.01)
    runners.actor(2).apply.remote(kill_node)
    batch = run.step()
    assert all(ray.get(entry.result.group, timeout=10) is not None for entry in batch), "none of the lost node's groups is in a batch"
    run.steps_until(lambda: runners.healthy() == [1])
    run.steps_until(lambda: runners.healthy() == [1, 2])  # on the node that the autoscaler found instead

    runners.stop()
    counts = run.ledger.reset_counts()
    assert counts["given_up"] == 0
    assert run.exactly_once()
