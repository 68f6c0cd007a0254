"""Machines that are none: network namespaces of this one, each with an address of its own, on one switch.

What a network does can be done here for real: a node's packets vanish (`cut`) while everything on it goes on, and come
through again (`heal`). The file system is shared, as a volume that all nodes mount would be, but each start of Ray has a temporary
folder of its own, as it has in a new pod. The switch is a bridge in a
namespace of its own, so nothing of the machine's own network changes, and two of these do not meet.

Invariant: `close` ends every process in the namespaces and removes them, whatever happened before; so does the death of this process.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

PORT = 6379
NETWORK = "10.77.0"
RAY = str(Path(sys.executable).with_name("ray"))
STORE_BYTES = 200 << 20
AGAIN = ("bash", "-c", 'while true; do "$@"; sleep 1; done', "again")  # what starts Ray on a real node does so too
# Should this process be killed: waits for the end of its input, and removes what is left of namespaces named $1* and the folder $2.
GUARD = """read -r _; for name in $(ip netns list | grep -o "^$1[^ ]*"); do
ip netns pids $name | xargs -r kill -9; sleep 0.2; ip netns del $name; done; rm -rf "$2" """
START_SECONDS, END_SECONDS = 120.0, 20.0


def missing() -> str:
    """Why namespaces cannot be had here; "" when they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if shutil.which("ip") is None or shutil.which("bridge") is None:
        return "network namespaces need the commands ip and bridge (iproute2)"
    name = f"mmsr-try-{secrets.token_hex(3)}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode != 0:
        return "this machine lets nobody make network namespaces"
    _run("ip", "netns", "del", name)
    return ""


class Machine:
    """One namespace. Make it with `Lan.machine`."""

    def __init__(self, lan: str, number: int, folder: Path, environment: Mapping[str, str]) -> None:
        self.name, self.address = f"{lan}-{number}", f"{NETWORK}.{10 + number}"
        self._lan, self._port, self.folder = lan, f"p{number}", folder
        self._environment = {**os.environ, **environment}
        self._starts = itertools.count(1)
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", "eth0", "netns", self.name, "type", "veth", "peer", "name", self._port, "netns", lan)
        _run("ip", "-n", lan, "link", "set", self._port, "master", "switch", "up")
        _run("ip", "-n", self.name, "link", "set", "lo", "up")
        _run("ip", "-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _run("ip", "-n", self.name, "link", "set", "eth0", "up")
        _run("ip", "-n", self.name, "route", "add", "default", "via", f"{NETWORK}.1")  # whoever asks which address is his own looks here

    # ------------------------------------------------------------------------------------------------ processes

    def popen(self, command: Sequence[str], *, log: str = "", **environment: str) -> subprocess.Popen[bytes]:
        """Start a command on this machine, in a session of its own; what it says goes to the file `log` in the folder."""
        out: IO[bytes] | int = (self.folder / log).open("ab") if log else subprocess.DEVNULL
        try:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                env=self._environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        finally:
            if not isinstance(out, int):
                out.close()

    def pids(self) -> list[int]:
        return [int(pid) for pid in _run("ip", "netns", "pids", self.name).split()]

    def kill(self) -> None:
        """SIGKILL to everything here: a machine that lost its power, but for its files."""
        deadline = time.monotonic() + END_SECONDS
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes {pids} on {self.name} do not end")
            time.sleep(0.05)

    # ------------------------------------------------------------------------------------------------ Ray

    def ray_head(self, *, cpus: int, redis: str = "", **options: Any) -> subprocess.Popen[bytes]:
        """One that finds in `redis` (an address) what the head before it left there; "" for one that remembers nothing."""
        keeps = {"RAY_REDIS_ADDRESS": redis} if redis else {}
        return self._ray(["--head", f"--port={PORT}", "--include-dashboard=false"], cpus, options, **keeps)

    def ray_node(self, head: Machine, *, cpus: int, **options: Any) -> subprocess.Popen[bytes]:
        """Join the head's cluster, once that is there, and again whenever Ray has ended here."""
        deadline = time.monotonic() + START_SECONDS
        probe = ["ip", "netns", "exec", self.name, "bash", "-c", f"exec 3<>/dev/tcp/{head.address}/{PORT}"]
        while subprocess.run(probe, capture_output=True, check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no Ray listens at {head.ray_address}: see {head.folder / head.name}.log")
            time.sleep(0.2)
        return self._ray([f"--address={head.ray_address}"], cpus, options, AGAIN)

    @property
    def ray_address(self) -> str:
        return f"{self.address}:{PORT}"

    def _ray(
        self, role: list[str], cpus: int, options: Mapping[str, Any], under: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen[bytes]:
        temporary = self.folder / f"{self.name[-1]}.{next(self._starts)}"  # short: sockets lie in it
        common = [f"--node-ip-address={self.address}", f"--num-cpus={cpus}", f"--object-store-memory={STORE_BYTES}"]
        common += [f"--temp-dir={temporary}"]
        common += ["--disable-usage-stats", "--block", *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]
        environment["RAY_raylet_start_wait_time_s"] = f"{START_SECONDS:.0f}"
        return self.popen([*under, RAY, "start", *role, *common], log=f"{self.name}.log", **environment)

    def redis(self) -> str:
        """Start one here, with nothing on disk; its address."""
        command = ["redis-server", "--bind", self.address, "--port", str(PORT), "--protected-mode", "no", "--save", ""]
        self.popen(command, log=f"{self.name}.log")
        return f"{self.address}:{PORT}"

    # ------------------------------------------------------------------------------------------------ the network

    def cut(self) -> None:
        """From now on every packet from and to this machine vanishes. Nobody is told: no connection is closed, the link stays up."""
        _run("bridge", "-n", self._lan, "link", "set", "dev", self._port, "state", "disabled")

    def heal(self) -> None:
        _run("bridge", "-n", self._lan, "link", "set", "dev", self._port, "state", "forwarding")

    def remove(self) -> None:
        self.kill()
        _run("ip", "netns", "del", self.name)


class Lan:
    """A switch and its machines. `environment` is added to that of every process on them."""

    def __init__(self, **environment: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lan", dir="/tmp"))  # short: sockets lie in it
        self.name = f"mmsr-{secrets.token_hex(3)}"
        self._environment = environment
        self._machines: list[Machine] = []
        guard = ["bash", "-c", GUARD, "guard", self.name, str(self.folder)]
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        _run("ip", "netns", "add", self.name)
        _run("ip", "-n", self.name, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", self.name, "addr", "add", f"{NETWORK}.1/24", "dev", "switch")
        _run("ip", "-n", self.name, "link", "set", "switch", "up")

    def machine(self) -> Machine:
        made = Machine(self.name, len(self._machines) + 1, self.folder, self._environment)
        self._machines.append(made)
        return made

    def close(self) -> None:
        for machine in self._machines:
            machine.remove()
        _run("ip", "netns", "del", self.name)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._guard.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
