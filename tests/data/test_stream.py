"""The order of prompts and its resumption, on a real Ray whose every CPU is taken by someone else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import ray
from ray.exceptions import RayTaskError

from mmsr_ray.config import DataConfig
from mmsr_ray.data.feeder import start_feeder
from mmsr_ray.data.reader import rank, read_index
from mmsr_ray.data.schema import BadRows, DataError, write_fvqa
from mmsr_ray.data.stream import Place, PromptStream, stream_samples
from mmsr_ray.types import Ticket

from .test_reader import png, sample

pytestmark = pytest.mark.heavy

QUESTIONS = 60
CONFIG = DataConfig(train="", test="", prefetch_samples=16)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two CPUs, both inside a placement group, as a Tune trial would hold them."""
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=120 << 20, log_to_driver=False)
    ray.get(ray.util.placement_group([{"CPU": 2}]).ready(), timeout=60)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("set")
    for part in range(3):
        write_fvqa(path / f"{part}.parquet", [sample(i) for i in range(part * 20, part * 20 + 20)])
    return str(path)


def expected(seed: int, epochs: int) -> list[tuple[int, str]]:
    uids = [f"u{i}" for i in range(QUESTIONS)]
    return [(epoch, uid) for epoch in range(epochs) for uid in sorted(uids, key=lambda uid: rank(uid, seed, epoch))]


def take(feeder: Any, count: int, seconds: float = 60.0) -> list[Ticket]:
    """Exactly `count` tickets, or a failed test."""
    tickets: list[Ticket] = []
    deadline = time.monotonic() + seconds
    while len(tickets) < count:
        assert time.monotonic() < deadline, f"{len(tickets)} of {count} tickets after {seconds} s"
        more = ray.get(feeder.next_tickets.remote(count - len(tickets), 5.0), timeout=30)
        assert len(more) <= count - len(tickets)
        tickets += more
    return tickets


def keys(tickets: list[Ticket]) -> list[tuple[int, str]]:
    return [(ticket.epoch, ticket.uid) for ticket in tickets]


def test_order_is_the_hash_and_resumption_is_exact(cluster: None, folder: str) -> None:
    index = read_index(folder, CONFIG)
    whole = list(islice(PromptStream(index, CONFIG, seed=3), 2 * QUESTIONS + 5))
    assert [(place.epoch, s.uid) for place, s in whole] == expected(3, 3)[: len(whole)]
    assert all(s == sample(int(s.uid[1:])) for _, s in whole)
    for stop in (7, QUESTIONS - 1, QUESTIONS + 3):  # within an epoch, at its end, in the next
        rest = islice(PromptStream(index, CONFIG, seed=3, start=whole[stop][0].after()), 6)
        assert [(p, s.uid) for p, s in rest] == [(p, s.uid) for p, s in whole[stop + 1 : stop + 7]]
    assert [uid for _, uid in expected(3, 1)] != [uid for _, uid in expected(4, 1)]


def test_passes_follow_each_other(cluster: None, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsr_ray.data.stream.PASS_ROWS", QUESTIONS)  # one epoch a pass
    stream = PromptStream(read_index(folder, CONFIG), CONFIG, seed=1)
    assert [(place.epoch, s.uid) for place, s in islice(stream, QUESTIONS + 10)] == expected(1, 2)[: QUESTIONS + 10]


def test_bad_pictures_are_passed_over_and_counted_once(cluster: None, tmp_path: Path) -> None:
    write_fvqa(tmp_path / "t.parquet", [sample(i) for i in range(5)])
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    table[2]["images"][0]["bytes"] = png()[:40]
    pq.write_table(pq.read_table(tmp_path / "t.parquet").from_pylist(table), tmp_path / "t.parquet")
    stream = PromptStream(read_index(str(tmp_path), CONFIG), CONFIG, seed=0)
    seen = [s.uid for _, s in islice(stream, 12)]  # three epochs of four
    assert sorted(seen[:4]) == ["u0", "u1", "u3", "u4"]
    assert sorted(seen[4:8]) == sorted(seen[:4])
    assert stream.bad.counts == {"corrupt image": 1}

    for row in table:
        row["images"][0]["bytes"] = b"rubbish"
    pq.write_table(pq.read_table(tmp_path / "t.parquet").from_pylist(table), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"no usable row in .*corrupt image: 5"):
        next(iter(PromptStream(read_index(str(tmp_path), CONFIG), CONFIG, seed=0)))


def test_feeder_hands_out_each_ticket_once_and_its_sample_by_reference(cluster: None, folder: str) -> None:
    feeder = start_feeder(folder, CONFIG, seed=5)
    tickets = take(feeder, QUESTIONS + 20)
    assert keys(tickets) == expected(5, 2)[: QUESTIONS + 20]
    assert all(ticket.rank == rank(ticket.uid, 5, ticket.epoch) for ticket in tickets)
    for ticket in tickets[::13]:
        assert ray.get(ticket.sample[0], timeout=10) == sample(int(ticket.uid[1:]))
    assert cast(dict[str, int], ray.get(feeder.stats.remote()))["questions"] == QUESTIONS
    ray.kill(feeder)


def test_requeued_tickets_come_first_in_order(cluster: None, folder: str) -> None:
    feeder = start_feeder(folder, CONFIG, seed=5)
    tickets = take(feeder, 10)
    ray.get(feeder.requeue.remote([tickets[7], tickets[2]]))
    ray.get(feeder.requeue.remote([tickets[7]]))  # twice is once
    assert keys(take(feeder, 4)) == [keys(tickets)[2], keys(tickets)[7], *expected(5, 1)[10:12]]
    ray.kill(feeder)


def test_a_checkpoint_repeats_what_was_in_flight_and_nothing_else(cluster: None, folder: str) -> None:
    first = start_feeder(folder, CONFIG, seed=5)
    tickets = take(first, QUESTIONS + 10)  # in flight across the end of an epoch
    ray.get(first.requeue.remote([tickets[-1]]))
    in_flight = [tickets[-3], tickets[40]]
    state = cast(dict[str, Any], ray.get(first.state.remote([(t.epoch, t.uid) for t in in_flight])))
    assert state == ray.get(first.state.remote(in_flight))
    ray.kill(first)

    second = start_feeder(folder, CONFIG, seed=5, state=state)
    again = take(second, 6)
    assert keys(again) == [keys(tickets)[40], keys(tickets)[-3], keys(tickets)[-1], *expected(5, 2)[QUESTIONS + 10 : QUESTIONS + 13]]
    assert ray.get(again[0].sample[0], timeout=10) == sample(int(again[0].uid[1:]))

    place = Place(tickets[30].epoch, tickets[30].rank)  # a bare place: the first ticket that is not done
    ray.get(second.restore.remote({"epoch": place.epoch, "rank": place.rank}))
    assert keys(take(second, 3)) == keys(tickets)[30:33]

    with pytest.raises(RayTaskError, match=r"set run\.seed"):
        ray.get(second.restore.remote(state | {"seed": 6}))
    with pytest.raises(RayTaskError, match="are not in"):
        ray.get(second.restore.remote(state | {"again": [(0, "stranger")]}))
    assert keys(take(second, 1)) == keys(tickets)[33:34]  # a refused state changes nothing
    ray.kill(second)


def test_a_broken_stream_is_an_error_not_a_wait(cluster: None, tmp_path: Path) -> None:
    write_fvqa(tmp_path / "t.parquet", [sample(i) for i in range(3)])
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    for row in table:
        row["images"][0]["bytes"] = b"rubbish"
    pq.write_table(pq.read_table(tmp_path / "t.parquet").from_pylist(table), tmp_path / "t.parquet")
    feeder = start_feeder(str(tmp_path), CONFIG, seed=0)
    for _ in range(2):
        with pytest.raises(RayTaskError, match="no usable row"):
            ray.get(feeder.next_tickets.remote(1, 30.0), timeout=60)
    ray.kill(feeder)


def test_any_rows_are_streamed_once_in_their_order(cluster: None, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsr_ray.data.stream.PASS_ROWS", 25)
    rows = read_index(folder, CONFIG).rows[::-1]
    bad = BadRows()
    assert list(stream_samples(rows, CONFIG, bad)) == [sample(i) for i in reversed(range(QUESTIONS))]
    assert not bad.total
