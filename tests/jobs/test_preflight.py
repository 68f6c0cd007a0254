"""The preflight on a real Ray whose real autoscaler may add one node: what can never fit, another image, storage that is not shared."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
from ray.tune import PlacementGroupFactory

from jobs import preflight, room
from jobs.preflight import PreflightError, check_cluster, check_nodes
from jobs.room import NoRoom, wait_for_room
from mmsr_ray.config import Config, load
from mmsr_ray.preflight import look
from mmsr_ray.preflight.fleet import no_node
from tests.algorithms.autoscaling import QuietAutoscalingCluster

pytestmark = pytest.mark.heavy


@pytest.fixture
def autoscaled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A head of one CPU and at most one node more, of one CPU."""
    monkeypatch.setattr(room, "REFUSED_SECONDS", 2.0)
    with tempfile.TemporaryDirectory(prefix="pf", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.chdir(folder)  # of the nodes' processes too
        cluster = QuietAutoscalingCluster(Path(folder), max_workers=1)
        try:
            cluster.start(override_env={"RAY_NODE_TYPE_NAME": "ray.head.default"})  # as KubeRay names the group of a pod
            ray.init(cluster.address, namespace="mmsr", log_to_driver=False)
            yield
            ray.shutdown()
        finally:
            cluster.shutdown()


def config(folder: Path, *overrides: str) -> Config:
    shape = ["rollout.num_runners=1", "learner.world_size=1", "rollout.cpus_per_runner=0.8", "learner.cpus_per_rank=0.8"]
    return load(None, ["model.path=m", "data.train=a", "data.test=b", f"run.dir={folder}", *shape, *overrides])


def test_a_cluster_is_refused_by_name_or_taken(autoscaled: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(
        NoRoom, match=r"can never fit.* no node can ever hold CPU 0\.8, GPU 2, which rollout\.cpus_per_runner, rollout\.gpus"
    ):
        check_cluster(config(tmp_path, "rollout.gpus_per_runner=2"))
    many = config(tmp_path)
    with pytest.raises(NoRoom, match=r"worker groups at their largest are too small: .*CPU 0\.8.*raise maxReplicas"):
        wait_for_room(PlacementGroupFactory([{"CPU": 0.8}] * 3), 1800, explain=partial(no_node, config=many))
    assert time.monotonic() - began < 120, "each within a minute"

    check_cluster(many)  # the autoscaler adds the second node
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == [], "the marks are gone"

    with monkeypatch.context() as other:
        other.setattr(look, "versions", lambda: {"ray": "1.0.0"})
        with pytest.raises(PreflightError, match=r"node .* runs another image than the driver: ray 2\.\d+\.\d+ instead of 1\.0\.0"):
            check_nodes(many)
    with monkeypatch.context() as elsewhere:  # each process has its own /proc/self/cwd, and this one goes away from the nodes'
        elsewhere.setattr(preflight, "SEEN_SECONDS", 1.0)
        elsewhere.chdir(tmp_path)
        with pytest.raises(PreflightError, match="is another folder on node"):
            check_nodes(config(Path("/proc/self/cwd")))
