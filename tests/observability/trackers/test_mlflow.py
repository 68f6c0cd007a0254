"""MLflow for real: its file store, its REST server over HTTP, and servers that are not there."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsr_ray.algorithms.record import MetricsFile
from mmsr_ray.observability.trackers import follow, mlflow
from mmsr_ray.observability.trackers.follow import following, open_trackers
from mmsr_ray.observability.trackers.mlflow import dotted
from mmsr_ray.observability.trackers.port import TrackerError
from mmsr_ray.observability.trackers.settings import TrackingConfig

client = pytest.importorskip("mlflow.tracking", reason="MLflow is not installed: pip install 'mmsr-ray[trackers]'")
CONFIG = {"run": {"name": "mine"}, "tools": {"url": "https://me:hidden@host/search?key=hidden"}, "long": "x" * 7_000} | {
    f"key{i}": i for i in range(120)
}
SERVER = """
import sys
from werkzeug.serving import make_server
from mlflow.server import app
make_server("127.0.0.1", int(sys.argv[1]), app, threaded=True).serve_forever()
"""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", *mlflow.DEFAULTS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr(follow, "PAUSE_SECONDS", (0.1, 0.2))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of MLflow's own REST handlers over a store of files."""
    pytest.importorskip("alembic", reason="the server of MLflow needs alembic: pip install 'mmsr-ray[dev]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = f"file://{tmp_path / 'store'}"
    environment = os.environ | {"_MLFLOW_SERVER_FILE_STORE": store, "_MLFLOW_SERVER_ARTIFACT_ROOT": store}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], env=environment, stdout=log, stderr=log)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()[-3_000:]
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


def submit(folder: Path, uri: str, *steps: int, reward: float = 0.0) -> None:
    trackers = open_trackers(["mlflow"], TrackingConfig(project="searching", mlflow_uri=uri), folder)
    with following(trackers, folder, name="mine", config=CONFIG, end_seconds=120):
        file = MetricsFile(folder / "metrics.jsonl")
        for step in steps:
            file.append({"step": step, "reward": reward or step / 10, "seconds": {"learn": 1.5}})


def check_one_run(uri: str) -> None:
    store = client.MlflowClient(tracking_uri=uri)
    experiment = store.get_experiment_by_name("searching")
    assert experiment is not None
    runs = store.search_runs([experiment.experiment_id])
    assert [(run.info.run_name, run.info.status) for run in runs] == [("mine", "FINISHED")]
    history = store.get_metric_history(runs[0].info.run_id, "reward")
    assert sorted((metric.step, metric.value) for metric in history) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.9)]
    assert "seconds/learn" in runs[0].data.metrics
    params = runs[0].data.params
    assert params["run.name"] == "mine" and params["tools.url"] == "https://host/search" and params["key119"] == "119"
    assert len(params["long"]) == 6_000


@pytest.fixture
def files(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'mlruns'}"


def test_two_submissions_are_one_run_without_a_step_twice(tmp_path: Path, files: str) -> None:
    submit(tmp_path, files, 1, 2, 3)
    submit(tmp_path, files, 3, 4, reward=0.9)  # from a checkpoint after step 2
    check_one_run(files)


@pytest.mark.heavy
def test_the_same_over_http(tmp_path: Path, server: str) -> None:
    submit(tmp_path, server, 1, 2, 3)
    submit(tmp_path, server, 3, 4, reward=0.9)
    check_one_run(server)


def test_a_server_that_is_down_is_told_of_once_and_gets_everything_later(
    tmp_path: Path, files: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        submit(tmp_path, "http://127.0.0.1:9", 1, 2, 3)
    assert caplog.text.count("tracker mlflow fails") == 1
    assert json.loads((tmp_path / "trackers" / "tensorboard.json").read_text())["step"] == 3
    submit(tmp_path, files, 4, reward=0.9)
    check_one_run(files)


def test_without_an_address_it_is_said_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrackerError, match=r"no address: set run\.tracking\.mlflow_uri or MLFLOW_TRACKING_URI"):
        open_trackers(["mlflow"], TrackingConfig(), tmp_path)
    with pytest.raises(TrackerError, match=r"does not open run\.tracking\.mlflow_uri: "):
        open_trackers(["mlflow"], TrackingConfig(mlflow_uri="nonsense://x"), tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "mlflow" in open_trackers(["mlflow"], TrackingConfig(), tmp_path)


def test_settings_as_one_writes_them() -> None:
    assert dict(dotted({"a": {"b": 1, "c": {"d": [2]}}, "e": None})) == {"a.b": 1, "a.c.d": [2], "e": None}
