"""The launcher: whose Ray it is, and that a job's log and exit status come through and nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import IO

import pytest

from jobs.submission import Driver, again
from jobs.submit import ROOT, STORE_ON_DISK, LocalRay, SubmitError, links, store_bytes
from mmsr_ray.nodes import resources

SUBMIT = [sys.executable, str(ROOT / "jobs" / "submit.py")]
JOB = "import os, sys, time, mmsr_ray; print('root', mmsr_ray.__file__, flush=True); time.sleep(float(sys.argv[1])); sys.exit(int(sys.argv[2]))"


def test_ports_belong_to_the_checkout() -> None:
    here, there = LocalRay.of(Path("/home/a/mmsr")), LocalRay.of(Path("/home/b/mmsr"))
    assert here == LocalRay.of(Path("/home/a/mmsr")) and here != there
    assert all(20_000 <= ray.port < 30_000 and ray.port % 10 == 0 for ray in (here, there))
    assert len(f"{here.folder}/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store") < 107


def test_no_secret_is_on_the_command_line() -> None:
    ray = LocalRay(20_000)
    assert ray.environment()["RAY_AUTH_MODE"] == "token"
    assert "token" not in " ".join(ray.command(8))


def test_the_object_store_holds_two_versions_where_the_machine_can() -> None:
    gib = 1 << 30
    assert store_bytes(192 * gib, 96 * gib) == 32 * gib  # the 3B model twice: 14 GiB, and a fifth free
    assert store_bytes(192 * gib, 20 * gib) == 18 * gib, "Ray refuses more than 10 GB beyond /dev/shm"
    assert store_bytes(192 * gib, 64 << 20) == STORE_ON_DISK < 10**10, "a container's default: Ray takes a folder instead"
    assert store_bytes(6 * gib, 3 * gib) == gib


def test_the_memory_that_counts_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container of 6 GiB may see the /dev/shm of a machine of 500."""
    monkeypatch.setattr("ray._private.utils.get_system_memory", lambda: 6 << 30)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=250 << 30, f_frsize=1))
    assert f"--object-store-memory={1 << 30}" in LocalRay(20_004).command(8)


def test_a_job_links_to_its_numbers_where_a_grafana_is_named() -> None:
    named = {"RAY_GRAFANA_HOST": "http://grafana.monitoring:3000", "RAY_GRAFANA_IFRAME_HOST": "https://grafana.example/"}
    assert links(named) == {"grafana": "https://grafana.example/d/mmsr"}
    assert links({}) == links({"RAY_GRAFANA_HOST": "DISABLED"}) == {}


def test_a_job_with_an_id_runs_once_at_a_time() -> None:
    ended, running = True, False
    assert again("mine", {}) == ("mine", False)
    assert again("mine", {"other": running, "mine-2": running, "mine.x": running}) == ("mine", False)
    assert again("mine", {"mine": running}) == ("mine", True)
    assert again("mine", {"mine": ended}) == ("mine.2", False)
    assert again("mine", {"mine": ended, "mine.2": ended, "mine.10": running}) == ("mine.10", True)
    assert again("mine", {"mine": ended, "mine.2": ended, "mine.10": ended}) == ("mine.11", False)


def test_a_bare_cluster_installs_the_package_and_not_the_folder_alone() -> None:
    """Its entry points are what vLLM and torch look for; the extra must be one that there is."""
    options = Driver(1.0, "tools", "gpu").options()
    runtime = json.loads(options[options.index("--runtime-env-json") + 1])
    assert runtime["pip"] == ["${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}[gpu]"] and ".venv" in runtime["excludes"]
    assert json.loads(options[options.index("--entrypoint-resources") + 1]) == resources("tools")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cpu", "gpu"} <= project["optional-dependencies"].keys() and project["entry-points"]["vllm.general_plugins"]
    assert "pip" not in json.loads(Driver().options()[1]) and len(Driver().options()) == 2


@pytest.fixture
def stranger() -> Iterator[int]:
    """The port of a web server that is not Ray's."""

    class Hello(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_a_port_in_other_hands_is_said(stranger: int) -> None:
    with pytest.raises(SubmitError, match="taken by another program"):
        LocalRay(stranger).answers()
    with pytest.raises(SubmitError, match="taken by another program"):
        LocalRay(stranger - 1).start(num_cpus=1)


def test_nothing_is_stopped_that_is_not_ours(tmp_path: Path) -> None:
    ray = LocalRay(20_003)
    bystander = subprocess.Popen(["sleep", "30"], start_new_session=True)
    try:
        with ray.locked():
            (ray.folder / "pid").write_text(str(bystander.pid))  # the id of a dead head, given to another process
            assert ray.pid() is None
            ray.kill()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        (ray.folder / "pid").unlink()


def free_ports() -> int:
    """First of four ports that are free now."""
    for base in range(21_000 + os.getpid() % 500 * 10, 32_000, 10):
        try:
            for port in range(base, base + 4):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
    raise RuntimeError("no free ports")


def metadata(ray: LocalRay) -> dict[str, str]:
    """Of the only job, as Ray's dashboard gets it."""
    request = urllib.request.Request(f"{ray.address}/api/jobs/", headers={"Authorization": f"Bearer {ray.token.read_text()}"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        (job,) = [job for job in json.load(answer) if job["submission_id"]]
    return job["metadata"]


def leftovers(ray: LocalRay) -> str:
    shown = subprocess.run(["ps", "-ww", "-eo", "pid,command"], capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in shown.splitlines() if f"{ray.folder}/" in line)


@pytest.mark.heavy
def test_log_and_exit_status_come_through_and_the_head_goes(tmp_path: Path) -> None:
    ray = LocalRay(free_ports())
    command = [*SUBMIT, "--port", str(ray.port), "--num-cpus", "2", "--", "python", "-c", JOB, "0.5", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 7, done.stderr
    assert "_ray_pkg_" in done.stdout and "mmsr_ray/__init__.py" in done.stdout  # the job ran the code that was shipped
    assert not ray.answers() and leftovers(ray) == ""


@pytest.mark.heavy
def test_sigterm_ends_job_and_head() -> None:
    ray = LocalRay(free_ports())
    command = [*SUBMIT, "--port", str(ray.port), "--num-cpus", "2", "--", "python", "-c", JOB, "300", "0"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"RAY_GRAFANA_HOST": "http://grafana.example"})
    try:
        assert running.stdout is not None
        deadline = time.monotonic() + 90
        while "root" not in running.stdout.readline():
            assert time.monotonic() < deadline and running.poll() is None
        shown = {file.name for file in ray.dashboards.iterdir()}  # Grafana would find ours beside Ray's own
        assert shown >= {"mmsr.json", "default_grafana_dashboard.json"}
        assert metadata(ray) == {"grafana": "http://grafana.example/d/mmsr"}
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 143
        assert not ray.answers() and leftovers(ray) == ""
    finally:
        running.kill()
        subprocess.run([*SUBMIT, "--port", str(ray.port), "--stop"], check=True)


COUNT = """
import pathlib, sys, time
file = pathlib.Path(sys.argv[1])
done = int(file.read_text()) if file.exists() else 0
print("goes on after", done, flush=True)
file.write_text(str(done + 20))
time.sleep(0 if done else 600)  # the first life ends by being stopped
"""


@pytest.mark.heavy
def test_a_job_on_a_cluster_of_others_is_followed_while_it_runs_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    """The head has a token and a custom resource as a KubeRay group has; the launcher neither starts nor stops it."""
    head, progress = LocalRay(free_ports()), tmp_path / "progress"
    environment = head.environment()
    command = [*SUBMIT, "--address", head.address, "--id", "mine", "--driver-node", "tools", "--", "python", "-c", COUNT, str(progress)]
    with head.locked():
        head.start(num_cpus=2, resources={"tools": 1})
    try:
        first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert first.stdout is not None
        _wait_for(first.stdout, "goes on after 0")
        second = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert second.stdout is not None
        _wait_for(second.stdout, "runs already")
        first.terminate()
        assert first.wait(60) == 143, "the follower alone ended"
        _wait_for(second.stdout, "goes on after 0")
        subprocess.run([Path(sys.executable).with_name("ray"), "job", "stop", "--address", head.address, "mine"], env=environment, check=True, capture_output=True, timeout=90)  # fmt: skip
        assert second.wait(60) == 1
        third = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
        assert third.returncode == 0 and "mine.2" in third.stderr, third.stderr
        assert "goes on after" in third.stdout and "goes on after 0" not in third.stdout and progress.read_text() == "40"
        assert head.answers()
    finally:
        with head.locked():
            head.stop(keep_logs=False)


def _wait_for(lines: IO[str], words: str) -> None:
    for line in lines:
        if words in line:
            return
    raise AssertionError(f"never said: {words}")
