"""summary.json: valid, whole, and silent about where it was made."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path

import numpy as np
import pytest

from mmsr_ray.config import load
from mmsr_ray.evaluation.summary import config_hash, machine, read_summary, write_json, write_summary

OVERRIDES = ["model.path=m", "data.train=a", "data.test=b", "run.seed=7"]


def test_the_machine_is_described_without_names() -> None:
    description = machine()
    assert description["cores"] >= 1
    assert description["memory_gib"] > 0
    assert description["cpu"]
    assert {"torch", "ray"} <= description["versions"].keys()
    text = json.dumps(description)
    assert platform.node() not in text or not platform.node()
    assert str(Path.home()) not in text
    assert f'"{getpass.getuser()}"' not in text


def test_hash_follows_settings_but_not_locations() -> None:
    base = config_hash(load(None, OVERRIDES))
    assert base == config_hash(load(None, OVERRIDES))
    assert base == config_hash(load(None, [*OVERRIDES, "run.dir=elsewhere"]))
    assert base != config_hash(load(None, [*OVERRIDES, "grpo.lr=1e-5"]))


def test_summary_round_trip(tmp_path: Path) -> None:
    config = load(None, OVERRIDES)
    rows = [{"name": "direct", "accuracy": np.float64(0.5), "search_precision": None, "odd": float("nan"), "questions": np.int64(3)}]
    path = write_summary(tmp_path / "run", config=config, seconds={"training": 1.23456}, rows=rows, budget_seconds=600)
    summary = read_summary(tmp_path / "run")
    assert list(summary)[:6] == ["run", "config_hash", "seed", "machine", "seconds", "rows"]
    assert (summary["seed"], summary["seconds"], summary["budget_seconds"]) == (7, {"training": 1.235}, 600)
    assert summary["rows"] == [{"name": "direct", "accuracy": 0.5, "search_precision": None, "odd": None, "questions": 3}]
    assert [p.name for p in path.parent.iterdir()] == ["summary.json"]
    with pytest.raises(ValueError, match="seed"):
        write_summary(tmp_path, config=config, seconds={}, rows=[], seed=1)
    with pytest.raises(TypeError, match="no place in a summary"):
        write_json(tmp_path / "x.json", {"a": object()})
