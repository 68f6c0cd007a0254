"""The benchmarks' own parts: a bare client that does the tools' requests, a load, and what is read from a finished run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import benchmark
from jobs.benchmark_faults import Run, measured, rows_of
from jobs.benchmark_load import BareClient, Photos, Server, one_by_one, play, pointed_at, stand_in
from jobs.benchmark_rows import row
from mmsr_ray.config import Config
from mmsr_ray.tools.local import LocalTools

TOPK = 5


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with stand_in() as started:
        yield started


async def test_the_bare_client_makes_the_requests_of_the_tools(server: Server) -> None:
    photos, counts = Photos(), [server.counts()]
    async with LocalTools(pointed_at(Config(), server, topk=TOPK)) as tools, BareClient(server.base, TOPK) as bare:
        for searches in (tools, bare):
            await play(searches, photos.take(4), topk=TOPK, start_of=lambda _: 0.0)
            counts.append(server.counts())
    ours, theirs = ({name: after[name] - before.get(name, 0) for name in after} for before, after in itertools.pairwise(counts))
    assert ours == theirs == {"upload": 4, "google_lens": 4, "thumb": 20, "google": 4, "reader": 20, "v1": 20}


async def test_a_call_takes_what_its_requests_take_and_trajectories_go_side_by_side(server: Server) -> None:
    server.take(search=0.3, other=0.1)
    try:
        async with BareClient(server.base, TOPK) as bare:
            played = await play(bare, Photos().take(4), topk=TOPK, start_of=lambda number: 0.1 * number)
            alone = await one_by_one(bare, Photos().take(1), topk=TOPK)
    finally:
        server.take(search=0.0, other=0.0)
    assert len(played.calls) == 8 and 0.5 <= played.median < 1.0
    assert 1.3 <= played.wall < 2.5
    assert 1.0 <= alone.wall < 2.0


async def test_a_result_that_is_not_whole_ends_the_measurement(server: Server) -> None:
    async with LocalTools(pointed_at(Config(), server, topk=TOPK)) as tools:
        with pytest.raises(RuntimeError, match="5 of 6 hits"):
            await play(tools, Photos().take(1), topk=TOPK + 1, start_of=lambda _: 0.0)


def finished_run(folder: Path, trajectories: list[dict[str, Any]], *, trained: int) -> Path:
    (folder / "trajectories").mkdir(parents=True)
    schema = pa.schema(
        [
            ("outcome", pa.string()),
            ("reward", pa.float64()),
            ("turns", pa.list_(pa.struct([("failure", pa.string())]))),
            ("step", pa.int32()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(trajectories, schema), folder / "trajectories" / "step_000001.parquet")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "trajectories": trained, "infra_errors": 3}) + "\n")
    rows = [{"name": "after RL, on_demand", "accuracy": 0.9}]
    (folder / "summary.json").write_text(json.dumps({"rows": rows, "seconds": {"training": 60.0}}))
    return folder


SOUND = {"outcome": "ok", "reward": 1.0, "turns": [{"failure": None}, {"failure": "no_results"}]}


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    assert measured(finished_run(tmp_path / "a", [SOUND, SOUND | {"outcome": "policy_error"}], trained=2)) == Run(0.9, 2, 0, 3, 60.0)


@pytest.mark.parametrize(
    "broken", [SOUND | {"outcome": "infra_error"}, SOUND | {"reward": None}, SOUND | {"turns": [{"failure": "timeout"}]}]
)
def test_an_infrastructure_failure_in_a_gradient_is_an_error(tmp_path: Path, broken: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="1 of 2 trained trajectories hold an infrastructure failure"):
        measured(finished_run(tmp_path / "b", [SOUND, broken], trained=2))


def test_trajectories_that_were_not_kept_cannot_be_vouched_for(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="3 trajectories were trained and 1 kept"):
        measured(finished_run(tmp_path / "c", [SOUND], trained=3))


def test_rows_of_the_faults_suite() -> None:
    pairs = [(Run(0.8, 100, 0, 4, 50.0), Run(0.9, 100, 0, 0, 40.0)), (Run(0.9, 100, 0, 6, 70.0), Run(0.8, 100, 0, 0, 40.0))]
    accuracy, failures, lost, seconds = rows_of(pairs, steps=20)
    assert (accuracy["value"], accuracy["reference_value"]) == (0.85, 0.85)
    assert "0.8, 0.9 against 0.9, 0.8" in accuracy["reference"]
    assert (failures["value"], failures["reference_value"]) == (0, 200)
    assert (lost["value"], lost["reference_value"]) == (10, 210)
    assert seconds["ratio"] == 1.5


def test_more_is_better_for_shares_and_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    known = [row("a", 0.9, "share right", "r", 1.0, "x"), row("b", 2.0, "s", "r", 1.0, "x"), row("c", 9.0, "tokens/s", "r", 1.0, "x")]
    (tmp_path / "tests" / "baselines").mkdir(parents=True)
    (tmp_path / "tests" / "baselines" / "x.json").write_text(json.dumps({"rows": known}))
    worse = [row("a", 0.7, "share right", "r", 1.0, "x"), row("b", 3.0, "s", "r", 1.0, "x"), row("c", 5.0, "tokens/s", "r", 1.0, "x")]
    better = [row("a", 1.0, "share right", "r", 1.0, "x"), row("b", 1.0, "s", "r", 1.0, "x"), row("c", 20.0, "tokens/s", "r", 1.0, "x")]
    assert len(benchmark.worse_than_baseline("x", worse)) == 3
    assert benchmark.worse_than_baseline("x", better) == benchmark.worse_than_baseline("x", known) == []


def test_pictures_come_once() -> None:
    photos = Photos()
    assert len(set(photos.take(40) + photos.take(40))) == 80
