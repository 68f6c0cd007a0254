"""Ray's head is asked on a real Ray: what it says is what Ray says, and one that is stopped is told of in time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
import ray
from ray.tune import PlacementGroupFactory

from jobs import atlas_stage, memory, room
from mmsr_ray import head
from mmsr_ray.config import load
from mmsr_ray.head import HeadAway, free_resources, living_nodes, stored_bytes

pytestmark = pytest.mark.heavy

BASE = ["data.train=none", "data.test=none", "model.path=none"]
SECONDS = 1.0
CPU = {"CPU": 1.0}


@pytest.fixture(scope="module", autouse=True)
def lone_node() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def stopped_head() -> Iterator[None]:
    """The process that is Ray's head lives and answers nobody."""
    (found,) = [process for process in psutil.Process().children(recursive=True) if process.name() == "gcs_server"]
    found.suspend()
    yield
    found.resume()


def _eventually(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def test_it_says_what_ray_says() -> None:
    (told,) = ray.nodes()
    (node,) = living_nodes()
    assert (node.id, node.address, node.resources) == (told["NodeID"], told["NodeManagerAddress"], told["Resources"])
    _eventually(lambda: free_resources() == [ray.available_resources()])
    busy = ray.util.placement_group([CPU])
    ray.get(busy.ready(), timeout=60)
    _eventually(lambda: [free["CPU"] for free in free_resources()] == [1.0])
    ray.util.remove_placement_group(busy)
    stored = ray.put(b"x" * (20 << 20))
    _eventually(lambda: stored_bytes() >= 20 << 20)
    del stored
    _eventually(lambda: stored_bytes() < 1 << 20)


@pytest.mark.parametrize(
    "question",
    [
        living_nodes,
        free_resources,
        stored_bytes,
        lambda: memory.check_memory(load(None, BASE)),
        lambda: atlas_stage.web_host(load(None, BASE)),
        lambda: room.free_room(CPU),
    ],
)
def test_a_head_that_does_not_answer_is_told_of_in_time(
    question: Callable[[], object], stopped_head: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "SECONDS", SECONDS)
    began = time.monotonic()
    with pytest.raises(HeadAway, match=r"^the head of Ray does not answer \(asked for 1 s: .*\): it is down.*run the same command again$"):
        question()
    assert time.monotonic() - began < SECONDS + 5


def test_waiting_for_room_ends_when_the_head_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "SECONDS", SECONDS)
    (process,) = [child for child in psutil.Process().children(recursive=True) if child.name() == "gcs_server"]
    stopped_at = []

    def stop(*_: object) -> str:
        stopped_at.append(time.monotonic())
        process.suspend()
        return "nodes"

    monkeypatch.setattr(room, "_for_what", stop)  # what is told of the first wait
    try:
        with pytest.raises(HeadAway):
            room.wait_for_room(PlacementGroupFactory([CPU] * 3), 600)
        assert time.monotonic() - stopped_at[0] < 4 * SECONDS + 5
    finally:
        process.resume()
