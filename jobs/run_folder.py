"""The folder of one run: its resolved config, and which stages are done with what result.

Promise: a stage whose result is recorded is never done again, also after a kill; a folder belongs to one config, and a
submission with another one is refused instead of mixing two runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmsr_ray.config import Config, ConfigError, ToolsConfig, to_yaml
from mmsr_ray.evaluation.settings import name_and_path
from mmsr_ray.evaluation.summary import config_hash, write_json
from mmsr_ray.observability.progress import Progress
from mmsr_ray.tools.providers import services

STAGES = "stages.json"


def with_absolute_paths(config: Config) -> Config:
    """Actors run in folders of their own, so every path that they get must mean the same everywhere. URLs and hub ids stay."""

    def absolute(path: str) -> str:
        return path if not path or "://" in path else str(Path(path).absolute())

    local_model = config.atlas.enabled or Path(config.model.path).is_dir()
    return replace(
        config,
        run=replace(config.run, dir=absolute(config.run.dir)),
        model=replace(config.model, path=absolute(config.model.path)) if local_model else config.model,
        data=replace(
            config.data,
            train=absolute(config.data.train),
            test=absolute(config.data.test),
            benchmarks_dir=absolute(config.data.benchmarks_dir),
        ),
        evaluation=replace(config.evaluation, benchmarks=[_absolute_benchmark(name, absolute) for name in config.evaluation.benchmarks]),
        tools=_absolute_tools(config.tools, absolute),
        sft=replace(config.sft, cache_dir=absolute(config.sft.cache_dir), demonstrations=absolute(config.sft.demonstrations)),
        atlas=replace(config.atlas, dir=absolute(config.atlas.dir)),
        construction=replace(
            config.construction,
            **{name: absolute(getattr(config.construction, name)) for name in ("concepts", "concept_counts", "textual", "manual")},
            test_sets=[absolute(path) for path in config.construction.test_sets],
        ),
    )


def _absolute_benchmark(benchmark: str, absolute: Callable[[str], str]) -> str:
    """Names of published ones stay."""
    name, path = name_and_path(benchmark)
    if path != benchmark:
        return f"{name}={absolute(path)}"
    return absolute(path) if any(mark in path for mark in "/.*") else path


def _absolute_tools(tools: ToolsConfig, absolute: Callable[[str], str]) -> ToolsConfig:
    return replace(
        tools,
        cache=replace(tools.cache, dir=absolute(tools.cache.dir)),
        tape=replace(tools.tape, dir=absolute(tools.tape.dir)),
        **{name: replace(section, path=absolute(section.path)) for name, section in services(tools).items()},
    )


class RunFolder:
    """`stage` runs or skips, `seconds` is the wall time by stage over all submissions."""

    def __init__(self, config: Config, progress: Progress) -> None:
        """Makes the folder. Raises ConfigError when it holds a run of another config."""
        self.path = Path(config.run.dir, config.run.name).absolute()
        self.path.mkdir(parents=True, exist_ok=True)
        self._progress = progress
        self._file = self.path / STAGES
        found = json.loads(self._file.read_text()) if self._file.is_file() else {"config_hash": config_hash(config), "stages": {}}
        if found["config_hash"] != config_hash(config):
            raise ConfigError(f"{self.path} holds a run of another config: choose another run.name, or remove the folder")
        self._record: dict[str, Any] = found
        (self.path / "config.yaml").write_text(to_yaml(config))

    def stage(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of `make()`, which must be JSON; of the earlier submission where this stage was done then."""
        entry = self._record["stages"].setdefault(name, {"done": False, "seconds": 0.0, "result": None})
        if entry["done"]:
            self._progress.note(f"== {name}: done before, in {entry['seconds']:.0f} s")
            return entry["result"]
        self._progress.stage(name)
        began = time.monotonic()
        try:
            entry["result"] = make()
            entry["done"] = True
        finally:
            entry["seconds"] += time.monotonic() - began
            write_json(self._file, self._record)
        return entry["result"]

    @property
    def seconds(self) -> dict[str, float]:
        return {name: entry["seconds"] for name, entry in self._record["stages"].items()}
