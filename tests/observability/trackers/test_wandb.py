"""W&B offline, for real: what it writes is read back. Online only as far as a server that is not there."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmsr_ray.algorithms.record import MetricsFile
from mmsr_ray.observability.trackers.follow import following, open_trackers
from mmsr_ray.observability.trackers.port import TrackerError
from mmsr_ray.observability.trackers.settings import TrackingConfig

wandb = pytest.importorskip("wandb", reason="W&B is not installed: pip install 'mmsr-ray[trackers]'")
BLOCK = 32_768
CONFIG = {"run": {"name": "mine"}, "tools": {"url": "https://me:hidden@host/search?key=hidden"}, "grpo": {"steps": 3}}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()


def records(file: Path) -> Iterator[Any]:
    """Of a .wandb file: LevelDB's log format behind seven bytes of W&B's own."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # no header begins so near the end of a block
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            record: Any = vars(wandb_internal_pb2)["Record"]()  # generated code that type checkers do not see
            record.ParseFromString(parts)
            yield record
            parts = b""


def submit(folder: Path, *steps: int, reward: float = 0.0, end_seconds: float = 120.0) -> None:
    trackers = open_trackers(["wandb"], TrackingConfig(project="searching"), folder)
    with following(trackers, folder, name="mine", config=CONFIG, end_seconds=end_seconds):
        file = MetricsFile(folder / "metrics.jsonl")
        for step in steps:
            file.append({"step": step, "reward": reward or step / 10, "seconds": {"learn": 1.5}})
    wandb.teardown()  # a submission is a process of its own, and so has a W&B service of its own


def test_two_submissions_are_one_run_without_a_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    submit(tmp_path, 1, 2, 3)
    time.sleep(1.1)  # W&B names its folders after the second
    submit(tmp_path, 3, 4, reward=0.9)  # from a checkpoint after step 2
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    found = [record for file in files for record in records(file)]
    runs = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert len({run.run_id for run in runs}) == 1
    assert {(run.project, run.display_name) for run in runs} == {("searching", "mine")}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["grpo"] == {"steps": 3}
    assert config["tools"] == {"url": "https://host/search"}
    told = []
    for record in found:
        if record.WhichOneof("record_type") == "history":
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            told.append((values["_step"], values["reward"], values["seconds/learn"]))
    assert told == [(1, 0.1, 1.5), (2, 0.2, 1.5), (3, 0.3, 1.5), (4, 0.9, 1.5)]
    assert b"hidden" not in b"".join(file.read_bytes() for file in (tmp_path / "wandb").rglob("*") if file.is_file())


def test_without_a_key_it_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(TrackerError, match="which has no key: set WANDB_API_KEY"):
        open_trackers(["wandb"], TrackingConfig(), tmp_path)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret")
    assert "wandb" in open_trackers(["wandb"], TrackingConfig(), tmp_path)


def test_a_wrong_key_is_told_once_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    submit(tmp_path, 1, 2)
    assert caplog.text.count("tracker wandb fails") == 1
    assert "API key" in caplog.text
    assert json.loads((tmp_path / "trackers" / "tensorboard.json").read_text())["step"] == 2
