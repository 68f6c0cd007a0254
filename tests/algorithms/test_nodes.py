"""A whole node lost: a runner and a learner rank at once, and whatever Ray had put there. All is real but the engines (`Unhurried`)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mmsr_ray.algorithms.grpo import GRPO
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.parts import bundles
from mmsr_ray.config import Config
from mmsr_ray.tools.actor import start_tools
from tests.algorithms.autoscaling import QUICK
from tests.algorithms.conftest import lines, run_config, trained
from tests.algorithms.searcher import Unhurried

pytestmark = pytest.mark.heavy

SECONDS = 300.0  # of any step here
HOME, AWAY = {"place": "home"}, {"place": "away"}


@pytest.fixture
def cluster_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A node that this process is on, and one that can be lost."""
    monkeypatch.setattr("ray._private.utils.write_ray_address", lambda *_: None)  # else every ray.init() of this machine comes here
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    common: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 200 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**common, "labels": HOME})
    cluster.add_node(**common, labels=AWAY)
    ray.init(cluster.address, namespace="mmsr", log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def start_trial(config: Config) -> Any:
    """GRPO as an actor in a placement group, as Tune starts it; one runner at home, the other and the learner away."""
    needed = bundles(config).bundles
    group = placement_group(needed, bundle_label_selector=[HOME, HOME, AWAY, AWAY])
    assert group.wait(60)
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True)
    return (
        ray.remote(GRPO)
        .options(num_cpus=config.grpo.driver_cpus, scheduling_strategy=place)
        .remote(config=GRPOConfig.from_config(config).env_runners(env_runner_cls=Unhurried))
    )


def test_a_lost_node_with_a_runner_and_the_learner_costs_the_steps_since_the_checkpoint(
    cluster_of_two: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    config = run_config(tiny_model, tmp_path)
    config.learner.world_size, config.grpo.steps = 1, 9
    tools = start_tools(config)
    trial = start_trial(config)

    def step() -> int:
        result: Any = ray.get(trial.train.remote(), timeout=SECONDS)
        return int(result["finished_steps"])

    assert step() == 1
    ray.get(trial.save_to_path.remote(str(tmp_path / "checkpoint")), timeout=SECONDS)
    assert step() == 2
    (away,) = cluster_of_two.worker_nodes
    cluster_of_two.add_node(num_cpus=2, object_store_memory=200 << 20, labels=AWAY)  # where Ray will put what is lost
    third = trial.train.remote()
    time.sleep(0.2)  # into its rollouts
    cluster_of_two.remove_node(away, allow_graceful=False)
    result: Any = ray.get(third, timeout=SECONDS)
    assert result["finished_steps"] == 2, "back to the checkpoint, and on from there"
    assert [step(), step()] == [3, 4]
    ray.get(trial.stop.remote(), timeout=60)
    del tools

    records = lines(tmp_path / "run")
    assert [line["step"] for line in records] == [1, 2, 3, 4]
    versions = [line["version"] for line in records]
    assert versions == sorted(set(versions))
    assert all(line["infra_errors"] == 0 for line in records)
    counts = Counter(uid for uids in trained(tmp_path / "run").values() for uid in uids)
    assert len(counts) == 4 * config.grpo.groups_per_step and set(counts.values()) == {1}
