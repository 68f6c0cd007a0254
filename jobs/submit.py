"""Runs one of the jobs on a Ray cluster: `python jobs/submit.py [--address URL] -- python jobs/train.py ...`.

Promise: the job goes through `ray job submit`, its log is followed here, and its exit status becomes ours. Without
`--address` a local Ray is used, started if it does not run; it is stopped again after its last job.

- The local Ray belongs to this checkout: its ports and its folder are derived from the path, so several checkouts on
  one machine do not meet. Only processes of our own head are ever stopped.
- Ray's control ports listen on every interface, whatever address they are given. So the local Ray demands a token,
  which lies in a folder that only this user can read.
- Ctrl-C ends the following, not the job; SIGTERM ends both (with `--address`, the following alone).
- A job with an `--id` runs once at a time: while it runs, submitting it again follows it; after its end, it starts anew, and goes
  on where it stopped.
- A cluster whose nodes have nothing but Ray: `--install gpu` has each of them install this checkout and what it needs. Keys are
  never sent: they are read from the environment of the nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the jobs package, when this file is run as a script

from jobs.submission import Driver, again, identity_of

log = logging.getLogger("submit")
ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 90.0
JOB_SECONDS = 35  # between SIGTERM and SIGKILL for a job: the default serving.shutdown_seconds, and a little
STOP_SECONDS = 40.0  # Ray drains a node for up to 30
STORE_ON_DISK = 2 << 30
DASHBOARD = ROOT / "cluster" / "monitoring" / "mmsr.json"  # for the Grafana that Ray's dashboard embeds


class SubmitError(RuntimeError):
    """What went wrong and what to do, in one sentence."""


class Terminated(Exception):
    """SIGTERM came."""


@dataclass(frozen=True)
class LocalRay:
    """The Ray of one checkout. `port` is the dashboard's; the next three are taken too."""

    port: int

    @classmethod
    def of(cls, root: Path) -> LocalRay:
        """Ports below the ephemeral range and above Ray's own worker ports (10002 to 19999)."""
        return cls(20_000 + zlib.crc32(str(root).encode()) % 1_000 * 10)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def folder(self) -> Path:
        return Path(f"/tmp/mmsr-ray-{os.getuid()}-{self.port}")  # short: a socket's path has 107 bytes at most

    @property
    def token(self) -> Path:
        return self.folder / "token"

    @property
    def dashboards(self) -> Path:
        """Ray writes its own here too, and tells Grafana to look here."""
        return self.folder / "dashboards"

    def environment(self) -> dict[str, str]:
        """Of the head, and so of every process of every job on it."""
        others = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}  # of another Ray, and it would win
        return others | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_SECONDS),
            "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR": str(self.dashboards),
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else starts or stops this Ray meanwhile. Raises SubmitError when the folder is another user's."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if self.folder.stat().st_uid != os.getuid():
            raise SubmitError(f"{self.folder} belongs to another user: choose other ports with --port.")
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def answers(self) -> bool:
        """Is our Ray up? Raises SubmitError when somebody else holds the port."""
        try:
            return "ray_version" in self._ask("/api/version")
        except (urllib.error.HTTPError, json.JSONDecodeError) as error:
            raise SubmitError(f"Port {self.port} is taken by another program: choose another with --port.") from error
        except OSError:
            return False

    def _ask(self, path: str, method: str = "GET") -> Any:
        """What the dashboard says. Raises OSError, json.JSONDecodeError."""
        token = self.token.read_text() if self.token.is_file() else ""
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {token}"}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return json.load(answer)

    def running(self) -> list[str]:
        """The jobs that have not ended."""
        jobs = self._ask("/api/jobs/")
        return [job["submission_id"] for job in jobs if job["submission_id"] and job["status"] in ("PENDING", "RUNNING")]

    def end_jobs(self) -> None:
        """SIGTERM to every job, and time to act on it: a service answers who has asked."""
        try:
            for identity in self.running():
                self._ask(f"/api/jobs/{identity}/stop", "POST")
            deadline = time.monotonic() + STOP_SECONDS
            while self.running() and time.monotonic() < deadline:
                time.sleep(0.2)
        except (OSError, json.JSONDecodeError) as error:
            log.warning("submit: the local Ray does not answer (%s); its jobs end with it", error)

    def start(self, num_cpus: int, resources: dict[str, float] | None = None) -> None:
        """Start the head in a session of its own, so that it outlives us where it should. Raises SubmitError."""
        for port in range(self.port, self.port + 4):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise SubmitError(f"Port {port} is taken by another program: choose another with --port.") from error
        shutil.rmtree(self.folder / "ray", ignore_errors=True)  # logs of a failed run, kept until now
        self.token.unlink(missing_ok=True)
        with os.fdopen(os.open(self.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        self.dashboards.mkdir(exist_ok=True)
        shutil.copy(DASHBOARD, self.dashboards)
        begun = time.monotonic()
        with (self.folder / "head.log").open("w") as out:
            head = subprocess.Popen(
                [*self.command(num_cpus), f"--resources={json.dumps(resources or {})}"],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd="/",
            )
        (self.folder / "pid").write_text(str(head.pid))
        while not self.answers():
            if head.poll() is not None or time.monotonic() - begun > START_SECONDS:
                self.kill()
                raise SubmitError(f"The local Ray did not start: read {self.folder / 'head.log'}.")
            time.sleep(0.2)
        log.info("submit: local Ray started in %.1f s (dashboard %s, token in %s)", time.monotonic() - begun, self.address, self.token)

    def command(self, num_cpus: int) -> list[str]:
        """`num_cpus` is logical: what jobs may ask for, fractions and idle actors included, not what the machine has."""
        from ray._private.utils import get_system_memory  # of the container where there is one; costs seconds, and --stop does without

        shared = os.statvfs("/dev/shm")
        options = {
            "port": self.port + 1,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": self.port,
            "dashboard-agent-listen-port": self.port + 2,
            "ray-client-server-port": self.port + 3,
            "include-dashboard": "true",
            "num-cpus": num_cpus,
            "object-store-memory": store_bytes(get_system_memory(), shared.f_bavail * shared.f_frsize),
            "temp-dir": self.folder / "ray",
        }
        ray = str(Path(sys.executable).with_name("ray"))
        return [ray, "start", "--head", "--block", "--disable-usage-stats", *(f"--{key}={value}" for key, value in options.items())]

    def pid(self) -> int | None:
        """The head's process, if it lives and is ours (a process id alone may have been given to another)."""
        file = self.folder / "pid"
        if not file.is_file():
            return None
        number = int(file.read_text())
        shown = subprocess.run(["ps", "-ww", "-p", str(number), "-o", "command="], capture_output=True, text=True, check=False).stdout
        return number if f"--temp-dir={self.folder}/" in shown else None

    def kill(self) -> None:
        """Ends the head and everything under it; the process group last, should something be left of it."""
        number = self.pid()
        if number is None:
            return
        os.kill(number, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self.pid() is not None and time.monotonic() < deadline:
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            os.killpg(number, signal.SIGKILL)

    def stop(self, *, keep_logs: bool) -> None:
        self.kill()
        if keep_logs:
            log.info("submit: local Ray stopped; its logs stay in %s", self.folder / "ray")
        else:
            shutil.rmtree(self.folder / "ray", ignore_errors=True)
            log.info("submit: local Ray stopped")


def store_bytes(memory: int, shared: int) -> int:
    """Of the object store, which two versions of the weights lie in, and the batches: a sixth of the memory, as far as /dev/shm holds it.

    Where that holds next to nothing, as in a container without --shm-size, Ray takes a folder on disk instead, for 10 GB at most.
    Ray refuses more than the memory that it may use.
    """
    return int(min(memory // 6, max(shared * 9 // 10, STORE_ON_DISK)))


def links(environment: Mapping[str, str]) -> dict[str, str]:
    """For the job's metadata, which Ray's dashboard shows: where its numbers are drawn, if a Grafana is named as for Ray itself."""
    grafana = environment.get("RAY_GRAFANA_IFRAME_HOST") or environment.get("RAY_GRAFANA_HOST") or ""
    return {"grafana": f"{grafana.rstrip('/')}/d/mmsr"} if "://" in grafana else {}


def submit(address: str, entrypoint: list[str], environment: dict[str, str], identity: str, driver: Driver) -> str:
    """`ray job submit`; returns the submission id. Raises SubmitError."""
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--address", address, "--submission-id", identity, "--no-wait", "--working-dir", str(ROOT)]
    command += ["--metadata-json", json.dumps(links(environment)), *driver.options(), "--", *entrypoint]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        raise SubmitError(f"ray job submit to {address} failed with status {done.returncode}: the reason stands above.")
    return identity


async def follow(address: str, identity: str) -> int:
    """Copies the job's log to stdout until the job ends; returns the exit status of its entrypoint."""
    from ray.job_submission import JobStatus, JobSubmissionClient  # costs seconds, and --stop does without

    client = JobSubmissionClient(address)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    shown = 0  # characters; a tail that breaks off begins again from the start of the log
    while True:
        skip = shown
        try:
            async for text in client.tail_job_logs(identity):
                new = text[skip:]
                skip = max(0, skip - len(text))
                shown += len(new)
                sys.stdout.write(new)
                sys.stdout.flush()
        except RuntimeError as error:  # the connection closed abnormally
            log.warning("submit: the log broke off (%s); taking it up again", error)
            await asyncio.sleep(1.0)
        except OSError as error:  # nobody listens there any more; aiohttp's error of connecting is one
            raise SubmitError(
                f"The Ray at {address} has gone (stopped, or died): the same command goes on from the last checkpoint."
            ) from error
        info = client.get_job_info(identity)
        if info.status.is_terminal():
            break
        await asyncio.sleep(0.2)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    reason = (info.message or "no reason given").strip().splitlines()[0]
    log.error("submit: job %s %s: %s", identity, info.status.value.lower(), reason)
    return info.driver_exit_code or 1


def end(address: str, identity: str) -> None:
    """Stop a job and wait until it has ended, for as long as Ray takes to kill it."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(address)
    client.stop_job(identity)
    deadline = time.monotonic() + STOP_SECONDS
    while not client.get_job_status(identity).is_terminal() and time.monotonic() < deadline:
        time.sleep(0.2)


def release(ray: LocalRay, *, keep_logs: bool) -> None:
    """Stop the local Ray unless another job still runs on it."""
    from ray.job_submission import JobSubmissionClient

    with ray.locked():
        if not ray.answers():
            return
        jobs = JobSubmissionClient(ray.address).list_jobs()
        if any(job.submission_id and not job.status.is_terminal() for job in jobs):
            log.info("submit: other jobs use the local Ray, so it stays; make stop ends it")
        else:
            ray.stop(keep_logs=keep_logs)


def run_local(ray: LocalRay, entrypoint: list[str], num_cpus: int) -> int:
    """Submit to this checkout's Ray, which is started before and stopped after where nobody else uses it."""
    environment = ray.environment()
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.update({key: environment[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")})
    with ray.locked():
        if not ray.answers():
            ray.start(num_cpus)
    status, identity, abandoned = 1, "", False
    try:
        identity = submit(ray.address, entrypoint, environment, identity_of(entrypoint), Driver())
        log.info("submit: job %s runs; Ctrl-C leaves it running, make stop ends it", identity)
        status = asyncio.run(follow(ray.address, identity))
    except KeyboardInterrupt:
        if not identity:
            return 130
        abandoned = True
        log.info("\nsubmit: job %s goes on in the background (see %s); make stop ends it and its Ray", identity, ray.address)
        return 130
    except Terminated:
        if identity:
            end(ray.address, identity)
        return 143
    finally:
        if not abandoned:
            release(ray, keep_logs=status != 0)
    return status


def run_remote(address: str, entrypoint: list[str], wanted: str, driver: Driver) -> int:
    """Submit to a cluster of others, which stays as it is; with `wanted`, an id, unless that job runs there already."""
    from ray.job_submission import JobSubmissionClient

    identity, runs = identity_of(entrypoint), False
    if wanted:
        try:
            jobs = JobSubmissionClient(address).list_jobs()
        except (RuntimeError, ConnectionError) as error:
            raise SubmitError(f"{address} does not tell its jobs: {error}") from error
        identity, runs = again(wanted, {job.submission_id: job.status.is_terminal() for job in jobs if job.submission_id})
    if runs:
        log.info("submit: job %s runs already; following it", identity)
    else:
        submit(address, entrypoint, dict(os.environ), identity, driver)
        log.info("submit: job %s runs; Ctrl-C leaves it running, ray job stop --address %s %s ends it", identity, address, identity)
    try:
        return asyncio.run(follow(address, identity))
    except KeyboardInterrupt:
        return 130
    except Terminated:
        return 143


def _terminate(_signal: int, _frame: object) -> None:
    raise Terminated


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", help="of a cluster's dashboard, such as http://head:8265; without it a local Ray is used")
    parser.add_argument(
        "--id", default="", help="with --address: name of the job; submitted while it runs it is followed, not started twice"
    )
    parser.add_argument(
        "--install", choices=["cpu", "gpu"], help="with --address: nodes that have only Ray install this checkout, so built"
    )
    parser.add_argument("--driver-cpus", type=float, default=1.0, help="with --address: CPUs of the entrypoint; 0 puts it on the head")
    parser.add_argument("--driver-node", default="", help="with --address: custom resource of the node for the entrypoint, such as tools")
    parser.add_argument("--port", type=int, help="first of four ports of the local Ray; by default derived from this checkout's path")
    parser.add_argument("--num-cpus", type=int, default=max(8, os.cpu_count() or 1), help="logical CPUs of the local Ray")
    parser.add_argument("--stop", action="store_true", help="stop the local Ray and whatever runs on it")
    parser.add_argument("entrypoint", nargs=argparse.REMAINDER, help="after --: the command that is the job")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("ray").setLevel(logging.WARNING)
    entrypoint = args.entrypoint[1:] if args.entrypoint[:1] == ["--"] else args.entrypoint
    ray = LocalRay(args.port) if args.port else LocalRay.of(ROOT)
    signal.signal(signal.SIGTERM, _terminate)  # an orphaned Ray would be worse than a lost job
    try:
        if args.stop:
            with ray.locked():
                if ray.pid() is None:
                    log.info("submit: no local Ray runs")
                else:
                    ray.end_jobs()
                    ray.stop(keep_logs=True)
            return 0
        if not entrypoint:
            parser.error("name the job after --, as in: -- python jobs/train.py --config jobs/configs/atlas.yaml")
        if args.address:
            return run_remote(args.address, entrypoint, args.id, Driver(args.driver_cpus, args.driver_node, args.install or ""))
        return run_local(ray, entrypoint, args.num_cpus)
    except SubmitError as error:
        log.error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
