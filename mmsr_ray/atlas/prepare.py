"""Atlas as a job uses it: files on disk, a web to talk to, demonstrations to learn from.

Promise: everything is a function of `Config.atlas`, `Config.agent` and the codec's limits; `prepare` writes nothing
that is there already in the same version. The web runs in a process of its own and ends with the one that started it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.atlas import teacher, web, words, world
from mmsr_ray.atlas.policy import build_policy
from mmsr_ray.config import AtlasConfig, Config, ToolsConfig
from mmsr_ray.data.schema import write_fvqa
from mmsr_ray.rollout.engine import load_codec
from mmsr_ray.tools.providers import services
from mmsr_ray.types import Group

log = logging.getLogger(__name__)
CONCEPTS = "concepts.txt"  # beside the sets: names of entities that a training set may ask about
UNBALANCED = "train_unbalanced.parquet"  # beside the other sets: training questions as they were collected
PLACEHOLDER = "{atlas}"  # in a provider's URL: the base URL of the web
_NOT_THE_WORLD = (
    "dir",
    "teacher",
    "latency_seconds",
    "latency_tail",
    "latency_max_seconds",
    "failure_rate",
    "rate_limit_rate",
    "garbage_rate",
    "hang_rate",
    "host",
)  # where it lies, how its web behaves, who teaches


class AtlasError(RuntimeError):
    """The Atlas web did not come up, or is not the one that was asked for."""


def pools(atlas: AtlasConfig) -> dict[str, int]:
    """Pool sizes as `World` takes them."""
    return {"known": atlas.known, "demonstrated": atlas.unknown_demonstrated, "train": atlas.unknown_train, "test": atlas.unknown_test}


def world_settings(atlas: AtlasConfig) -> dict[str, Any]:
    """The settings that the world's content follows from."""
    return {name: value for name, value in asdict(atlas).items() if name not in _NOT_THE_WORLD}


def cache_namespace(atlas: AtlasConfig) -> str:
    """Of the tools' cache: two worlds may be served at one address, one after the other."""
    settings = json.dumps(world_settings(atlas), sort_keys=True)
    return f"atlas-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"


def world_of(atlas: AtlasConfig) -> world.World:
    return world.World(atlas.seed, **pools(atlas))


def prepare(config: Config) -> None:
    """Write the policy folder, both parquet files where `config.model.path` and `config.data` say, UNBALANCED and CONCEPTS in atlas.dir.

    What is named outside of atlas.dir is somebody's own: it stays as it is, and is not made where it is missing.
    """
    stamp = Path(config.atlas.dir) / "atlas.json"
    version = _version(config)
    fresh = not (stamp.is_file() and stamp.read_text() == version)
    here = world_of(config.atlas)
    count = config.atlas.train_questions
    sets = {
        Path(config.data.train): lambda: here.samples("train", count),
        Path(config.data.test): lambda: here.samples("test", config.atlas.test_questions),
        stamp.with_name(UNBALANCED): lambda: here.collected_samples("train", count),  # last: data.train may name it
    }
    stamp.parent.mkdir(parents=True, exist_ok=True)
    if _inside(config.model.path, config.atlas.dir) and (fresh or not Path(config.model.path).is_dir()):  # a job before had its own model
        build_policy(config.model.path, config.atlas.seed)
    for file, samples in sets.items():
        if _inside(file, config.atlas.dir) and (fresh or not file.is_file()):
            write_fvqa(file, samples())
    stamp.with_name(CONCEPTS).write_text("".join(f"{entity.name}\n" for entity in here.pool(world.Pool.KNOWN, world.Pool.TRAIN)))
    stamp.write_text(version)
    log.info("Atlas: %d entities, %d + %d questions", len(here.entities), config.atlas.train_questions, config.atlas.test_questions)


def _inside(path: str | Path, folder: str) -> bool:
    return Path(path).absolute().is_relative_to(Path(folder).absolute())


def _version(config: Config) -> str:
    sources = [Path(module.__file__ or "").read_bytes() for module in (world, words, teacher, sys.modules[build_policy.__module__])]
    code = hashlib.sha256(b"".join(sources)).hexdigest()
    return json.dumps(
        {"atlas": world_settings(config.atlas), "prompts": PromptSet.load(config.agent.prompts).texts(), "code": code}, sort_keys=True
    )


def demonstrations(config: Config, start: int, count: int) -> list[Group]:
    """Demonstrations number `start` to `start + count - 1`."""
    prompts = PromptSet.load(config.agent.prompts)
    return teacher.demonstrations(world_of(config.atlas), load_codec(config), prompts, config.agent, count, start)


@dataclass
class WebProcess:
    """The Atlas web in a process of its own."""

    base: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=10)


def start_web(atlas: AtlasConfig, timeout_seconds: float = 60.0) -> WebProcess:
    """Start the web on a free port of `atlas.host`, an address of this machine. Raises AtlasError when it does not answer in time."""
    faults = web.Faults(
        latency=atlas.latency_seconds,
        failure=atlas.failure_rate,
        limited=atlas.rate_limit_rate,
        garbage=atlas.garbage_rate,
        hang=atlas.hang_rate,
        latency_tail=atlas.latency_tail,
        latency_max=atlas.latency_max_seconds,
    )
    ready = Path(tempfile.mkdtemp(prefix="atlas-web-")) / "base"
    command = [sys.executable, "-m", web.__name__, "--seed", str(atlas.seed), "--host", atlas.host, "--ready", str(ready)]
    command += ["--pools", json.dumps(pools(atlas)), "--faults", json.dumps(asdict(faults))]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AtlasError(f"the Atlas web ended at once with status {process.returncode}: run `{' '.join(command[1:3])}` to see why")
        if ready.is_file():
            started = WebProcess(ready.read_text(), process)
            check_web(started.base)
            return started
        time.sleep(0.05)
    process.kill()
    raise AtlasError(f"the Atlas web did not listen within {timeout_seconds:g} s")


def check_web(base: str) -> None:
    """Raises AtlasError when nothing answers at `base`."""
    try:
        with urlopen(f"{base}/health", timeout=10) as response:
            json.load(response)
    except (URLError, TimeoutError, ValueError) as error:
        raise AtlasError(f"no Atlas web answers at {base} ({error}): start it with `python -m {web.__name__} --ready FILE`") from error


def point_at(tools: ToolsConfig, base: str) -> ToolsConfig:
    """The tools with `{atlas}` in their URLs replaced by the web's base URL."""
    urls = {name: replace(provider, url=provider.url.replace(PLACEHOLDER, base)) for name, provider in services(tools).items()}
    return replace(tools, **urls)
