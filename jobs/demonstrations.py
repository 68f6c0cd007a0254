"""What a supervised stage learns from: trajectories in a file, of whichever teacher, or Atlas's own demonstrations.

Promise: the groups lie in the object store, owned by this process; the version changes whenever they may.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

import mmsr_ray.agent
from jobs.atlas_stage import demonstrations_version, make_demonstrations
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.algorithms.demonstrations import Place, choose, files_at, items_of, rebuild
from mmsr_ray.algorithms.sft import Demonstrations
from mmsr_ray.config import Config
from mmsr_ray.learner.plan import Item
from mmsr_ray.rollout.engine import load_codec
from mmsr_ray.types import Group

logger = logging.getLogger(__name__)

SECONDS_PER_TRAJECTORY = 2.0  # to rebuild one, pictures included: a generous bound


def source(config: Config) -> tuple[Callable[[], Demonstrations], str]:
    """How to get the demonstrations of the warm start, and their version. Raises DataError for a file that is not there."""
    if not config.sft.demonstrations:
        return lambda: make_demonstrations(config), demonstrations_version(config)
    path = config.sft.demonstrations
    return lambda: read_demonstrations(config, path), _version(config, path)


def read_demonstrations(config: Config, path: str | Path) -> Demonstrations:
    """The accepted trajectories of a file or folder, rebuilt by tasks in parallel for `config.model`'s tokenizer.

    Raises DataError when none is accepted.
    """
    choice = choose(path)

    def build(places: list[Place]) -> tuple[list[list[Item] | str], *tuple[Group | None, ...]]:
        found = list(rebuild(places, load_codec(config), PromptSet.load(config.agent.prompts), config.agent))
        told = [item if isinstance(item, str) else items_of(item) for item in found]
        return (told, *(None if isinstance(item, str) else item for item in found))

    made, began = [], []
    for places in _shares(choice.places, os.cpu_count() or 1):
        count = sum(len(place.rows) for place in places)
        build_share: Any = ray.remote(build)
        told, *groups = build_share.options(num_cpus=1, num_returns=count + 1).remote(places)
        began.append((told, groups, count))
    dropped: Counter[str] = Counter()
    for told, groups, count in began:
        for items, group in zip(ray.get(told, timeout=config.learner.start_seconds + count * SECONDS_PER_TRAJECTORY), groups, strict=True):
            if isinstance(items, str):
                dropped[items] += 1
            else:
                made.append((group, items))
    logger.info("demonstrations of %s: %s; rebuilt %d, dropped %s", path, dict(choice.counts), len(made), dict(dropped) or "none")
    return made


def _shares(places: list[Place], parts: int) -> list[list[Place]]:
    """Neighbouring places in `parts` lists of like length, without empty ones."""
    size = -(-len(places) // parts)
    return [places[at : at + size] for at in range(0, len(places), size)]


def _version(config: Config, path: str) -> str:
    """The files' content, and what rebuilding reads: the agent's limits, prompts and code."""
    sources = sorted(Path(mmsr_ray.agent.__path__[0]).glob("*.py"))
    digest = hashlib.sha256()
    for file in [*files_at(path), *sources]:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    prompts = PromptSet.load(config.agent.prompts).texts()
    return json.dumps({"content": digest.hexdigest(), "agent": asdict(config.agent), "prompts": prompts}, sort_keys=True)
