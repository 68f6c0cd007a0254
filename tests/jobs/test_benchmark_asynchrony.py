"""What the suite `asynchrony` makes of finished runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import benchmark
from jobs.benchmark_asynchrony import SETTINGS, STEPS, WARM_UP, Run, measured, rows_of
from mmsr_ray.config import load

PARTS = {"generate": 1.0, "tools": 2.5, "idle": 0.5, "learn": 5.0, "sync": 0.5, "rollout": 4.0, "total": 9.5}


def test_settings_are_possible() -> None:
    config = load(benchmark.ROOT / "jobs" / "configs" / "atlas.yaml", list(SETTINGS))
    assert (config.atlas.latency_tail, config.grpo.lr) == (1.0, 0.0)


def test_warm_up_steps_are_left_out_and_a_short_run_is_no_measurement(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    record = {"seconds": PARTS, "overlap": 0.5, "trajectories": 96, "sampled_tokens": 1000}
    early = {"seconds": dict.fromkeys(PARTS, 99.0), "overlap": 0.0, "trajectories": 1, "sampled_tokens": 1}
    file.write_text("".join(json.dumps(r) + "\n" for r in [early] * WARM_UP + [record] * STEPS))
    assert measured(file, step=9.6) == Run(9.6, PARTS, 0.5, 96, 1000 * STEPS)
    file.write_text(json.dumps(record) + "\n")
    with pytest.raises(RuntimeError, match="has 0 measured steps"):
        measured(file, step=9.6)


def test_the_hidden_share_is_of_the_smaller_half() -> None:
    sync = Run(9.6, PARTS, 0.0, 96, 7000)
    hidden = Run(6.0, PARTS | {"tools": 0.1}, 0.8, 96, 7000)
    rows = {row["name"].split(":")[0]: row for row in rows_of({"sync": sync, "async": sync, "in-flight": hidden})}
    assert len(rows) == 5
    assert rows["seconds per training step, in-flight (staleness 1, update=keep)"]["ratio"] == pytest.approx(6.0 / 9.6, abs=1e-4)
    assert "generate 1.00 + tools 0.10" in rows["seconds per training step, in-flight (staleness 1, update=keep)"]["reference"]
    share = rows["share of the smaller of rollout and learning that is hidden, in-flight (staleness 1, update=keep)"]
    assert (share["value"], share["ratio"]) == (0.9, 1.125)
    assert rows["share of the smaller of rollout and learning that is hidden, async (staleness 1, update=wait)"]["value"] == 0.0


def test_halves_that_differ_too_much_are_no_measurement() -> None:
    lopsided = Run(20.0, PARTS | {"rollout": 14.0}, 0.0, 96, 7000)
    with pytest.raises(RuntimeError, match=r"14\.0 s of rollout, 5\.0 s of learning"):
        rows_of(dict.fromkeys(("sync", "async", "in-flight"), lopsided))
