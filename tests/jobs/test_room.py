"""A trial that does not fit: told within a minute on a real Ray of two CPUs; and how an autoscaler is told from none."""

from __future__ import annotations

import logging
import threading
import time

import pytest
import ray
from ray.tune import PlacementGroupFactory

from jobs import room
from jobs.room import NoRoom, autoscaler_runs, legacy_node_types, scales, wait_for_room


@pytest.mark.parametrize(
    ("types", "verdict"),
    [
        ([], False),
        (["node_85de4ab4771ae1cf3e2b08d3c7df3d7d"], False),  # what Ray calls a node that nobody launched
        (["", "node_85"], False),
        (["ray.head.default"], True),
        (["headgroup", "gpu-workers"], True),
    ],
)
def test_node_types_tell_an_autoscaler(types: list[str], verdict: bool) -> None:
    assert scales(types) is verdict


def test_the_status_of_the_first_autoscaler_names_types() -> None:
    assert legacy_node_types({}) == []
    assert legacy_node_types({"autoscaler_report": None}) == []
    assert legacy_node_types({"autoscaler_report": {"active_nodes": {"head": 1}, "idle_nodes": None}}) == ["head"]


@pytest.mark.heavy
def test_what_can_never_fit_is_told_and_what_others_hold_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, logging_level=logging.ERROR, log_to_driver=False)
    try:
        monkeypatch.setattr(room, "PATIENCE_SECONDS", 3.0)
        assert not autoscaler_runs()
        wait_for_room(PlacementGroupFactory([{"CPU": 0.1}, {"CPU": 1}]), 60)

        began = time.monotonic()
        with pytest.raises(NoRoom) as error:
            wait_for_room(PlacementGroupFactory([{"CPU": 0.1}, {"CPU": 1}, {"CPU": 1}, {"CPU": 1, "GPU": 1}]), 1800)
        assert time.monotonic() - began < 40
        assert str(error.value) == (
            "training does not fit on this cluster, and no autoscaler adds nodes to it: asked: CPU 3.1, GPU 1 in bundles of 1 x CPU 0.1, "
            "2 x CPU 1, 1 x CPU 1, GPU 1; available: CPU 2, GPU 0; missing: CPU 1.1, GPU 1; " + room.REMEDY
        )

        other = ray.util.placement_group([{"CPU": 2}])
        ray.get(other.ready(), timeout=60)
        release = threading.Timer(6.0, ray.util.remove_placement_group, [other])
        release.start()
        with caplog.at_level(logging.WARNING):
            wait_for_room(PlacementGroupFactory([{"CPU": 1}]), 120)
        assert (
            "training waits for others to let go of what they hold: asked: CPU 1 in bundles of 1 x CPU 1; available: CPU 0" in caplog.text
        )

        other = ray.util.placement_group([{"CPU": 2}])
        ray.get(other.ready(), timeout=60)
        with pytest.raises(NoRoom, match=r"no room for training within grpo\.placement_seconds=2: asked: CPU 1 .* missing: CPU 1; lower"):
            wait_for_room(PlacementGroupFactory([{"CPU": 1}]), 2)
    finally:
        ray.shutdown()
