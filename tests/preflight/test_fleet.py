"""Worker groups that can never hold a run, each told by name, and those that can."""

from __future__ import annotations

import pytest

from mmsr_ray.algorithms.parts import bundles
from mmsr_ray.config import Config, load
from mmsr_ray.preflight.fleet import WorkerGroup, idle_cards, never, no_node

TOOLS = WorkerGroup("tools", {"CPU": 8, "tools": 1}, 1, 2)
RUNNERS = WorkerGroup("runners", {"CPU": 8, "GPU": 1, "runner": 1}, 0, 4)
LEARNERS = WorkerGroup("learners", {"CPU": 16, "GPU": 2, "learner": 1}, 1, 1)


def config(*overrides: str) -> Config:
    gpus = ["rollout.gpus_per_runner=1", "learner.gpus_per_rank=1", "rollout.node=runner", "learner.node=learner", "grpo.node=learner"]
    return load(None, ["model.path=m", "data.train=a", "data.test=b", "rollout.num_runners=4", *gpus, *overrides])


def said(c: Config, *groups: WorkerGroup) -> str:
    return never(bundles(c).bundles, groups, c)


def test_what_fits_has_no_complaint() -> None:
    assert said(config(), TOOLS, RUNNERS, LEARNERS) == ""


def test_cards_that_nobody_asks_for_are_told_of() -> None:
    none = config("rollout.gpus_per_runner=0", "learner.gpus_per_rank=0")
    assert "rollout.gpus_per_runner=0, learner.gpus_per_rank=0" in idle_cards([{"CPU": 8}, {"CPU": 8, "GPU": 1}], none)
    assert idle_cards([{"CPU": 8}], none) == idle_cards([{"CPU": 8, "GPU": 1}], config()) == ""


def test_no_gpus_for_a_config_that_wants_them() -> None:
    told = said(config(), TOOLS, WorkerGroup("runners", {"CPU": 8, "runner": 1}, 0, 4))
    assert told.startswith("no worker group has GPUs, and rollout.gpus_per_runner=1 and learner.gpus_per_rank=1")


def test_more_on_one_node_than_any_has_names_the_setting_and_the_groups() -> None:
    told = said(config("rollout.gpus_per_runner=2", "rollout.tensor_parallel=2"), TOOLS, RUNNERS, LEARNERS)
    assert "no node can ever hold CPU 1, GPU 2, runner 0.001, which rollout.cpus_per_runner, rollout.gpus_per_runner" in told
    assert "runners: CPU 8, GPU 1, runner 1" in told


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (WorkerGroup("runners", RUNNERS.resources, 4, 2), ("worker group runners can never scale", "(4)", "(2)", "minReplicas")),
        (
            WorkerGroup("runners", RUNNERS.resources, 0, 3),
            ("does not fit on the groups at their largest", "runners 3", "raise maxReplicas"),
        ),
        (WorkerGroup("runners", RUNNERS.resources, 0, 0), ("no node can ever hold", "rollout.gpus_per_runner")),
        (WorkerGroup("runners", {"CPU": 8, "GPU": 1}, 0, 4), ("no node can ever hold", "rollout.node")),
    ],
)
def test_a_group_that_is_in_the_way_is_named(group: WorkerGroup, words: tuple[str, ...]) -> None:
    told = said(config(), TOOLS, group, LEARNERS)
    assert all(word in told for word in words), told


def test_each_bundle_is_traced_to_its_settings() -> None:
    c = config("tools.node=tools")
    assert "tools.node ask" in no_node({"tools": 0.001}, c)
    assert "learner.cpus_per_rank" in no_node({"CPU": 1.0, "GPU": 1.0, "learner": 0.001}, c)
    assert "grpo.driver_cpus" in no_node({"CPU": 0.1, "learner": 0.001}, c)
    assert no_node({"TPU": 1.0}, c) == "no node can ever hold TPU 1"
