"""Groups are kept while training goes on, also while Ray's head is away."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray import ObjectRef
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mmsr_ray.algorithms.keeping import Keeper
from mmsr_ray.evaluation.trajectories import read_trajectories
from mmsr_ray.types import Group
from tests.evaluation.test_trajectories import SAMPLE, trajectory

pytestmark = pytest.mark.heavy

SECONDS = 60.0  # of any wait here


@ray.remote(num_cpus=1)
class Trial:
    """As Tune starts one: what it starts belongs to its placement group."""

    def __init__(self, folder: Path) -> None:
        self._keeper = Keeper(folder)

    def keep(self, groups: list[ObjectRef], step: int) -> float:
        """The seconds that it took."""
        began = time.monotonic()
        self._keeper.keep(groups, step)
        return time.monotonic() - began

    def finish(self) -> None:
        self._keeper.finish()


def test_keeping_never_waits_for_a_head_that_does_not_answer(cluster: None, tmp_path: Path) -> None:
    place = placement_group([{"CPU": 1}])
    strategy = PlacementGroupSchedulingStrategy(place, placement_group_capture_child_tasks=True)
    trial = Trial.options(scheduling_strategy=strategy).remote(tmp_path)
    group = ray.put(Group("u1", 0, SAMPLE, (trajectory(0),)))
    ray.get(trial.keep.remote([group], 1), timeout=SECONDS)
    (head,) = [process for process in psutil.Process().children(recursive=True) if process.name() == "gcs_server"]
    head.suspend()
    try:
        seconds: Any = ray.get(trial.keep.remote([group], 2), timeout=SECONDS)
        assert seconds < 2.0
    finally:
        head.resume()
    ray.get(trial.finish.remote(), timeout=SECONDS)
    assert sorted(row.step for row in read_trajectories(tmp_path) if row.step) == [1, 2]
