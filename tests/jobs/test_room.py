"""A trial that does not fit: told within a minute on a real Ray of two CPUs; and how an autoscaler is told from none."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
import ray
from ray.tune import PlacementGroupFactory

from jobs import room
from jobs.room import NoRoom, autoscaler_runs, first_scales, second_scales, wait_for_room


@pytest.mark.parametrize(
    ("report", "verdict"),
    [
        (None, False),
        ({"active_nodes": {"node_85de4ab4771ae1cf3e2b08d3": 1}}, False),  # it watches nodes that nobody launched
        ({"active_nodes": {}, "idle_nodes": {"node_85de4ab4771ae1cf3e2b08d3": 1}}, False),
        ({"active_nodes": {"ray.head.default": 1}, "idle_nodes": None}, True),
        ({"active_nodes": {}}, True),
    ],
)
def test_the_first_autoscaler_is_known_by_its_report(report: dict[str, Any] | None, verdict: bool) -> None:
    assert first_scales({"autoscaler_report": report}) is verdict
    assert not first_scales({})


@pytest.mark.parametrize(
    ("version", "types", "pending", "verdict"),
    [
        (0, ["headgroup"], 0, False),  # KubeRay names types without an autoscaler too
        (7, [""], 0, False),  # it only watches
        (7, ["headgroup", "gpu"], 0, True),
        (7, [""], 2, True),
    ],
)
def test_the_second_autoscaler_is_known_by_its_state(version: int, types: list[str], pending: int, verdict: bool) -> None:
    assert second_scales(version, types, pending) is verdict


@pytest.mark.parametrize("selectors", [False, True])
def test_what_the_second_autoscaler_refuses_is_known_by_its_bundles(selectors: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = room.GetClusterStatusReply()
    gang = reply.autoscaling_state.infeasible_gang_resource_requests.add()
    place = gang.bundle_selectors.add().resource_requests if selectors else gang.requests
    for cpus in (1.0, 0.1, 1.0):
        place.add().resources_bundle["CPU"] = cpus
    monkeypatch.setattr(room, "_status", lambda: reply)
    assert room._refused([{"CPU": 0.1}, {"CPU": 1}, {"CPU": 1, "GPU": 0}])
    assert not room._refused([{"CPU": 0.1}, {"CPU": 1}])
    monkeypatch.setattr(room, "_status", lambda: None)
    assert not room._refused([{"CPU": 0.1}, {"CPU": 1}, {"CPU": 1}])


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
