"""The supervised warm start, cached by a hash of everything that it depends on.

Promise: a folder in the cache is a complete model; two runs with the same demonstrations, model and SFT settings share it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from mmsr_ray.algorithms.sft import MARK, Demonstrations, fine_tune
from mmsr_ray.config import Config

logger = logging.getLogger(__name__)


def warm_start(config: Config, make: Callable[[], Demonstrations], version: str, on_step: Callable[[int, int, float], None]) -> str:
    """Folder of the warm-started model; trained now unless the cache has it.

    `make()` gives the demonstrations and `version` identifies them; `on_step(step, steps, loss)` is called as training goes on.
    """
    target = Path(config.sft.cache_dir).absolute() / f"sft-{warm_start_key(config, version)}"
    if (target / MARK).is_file():
        logger.info("warm start found at %s", target)
        return str(target)
    fine_tune(config, config.model.path, make, target, on_step)
    return str(target)


def warm_start_key(config: Config, version: str) -> str:
    """16 hex digits over the demonstrations, the starting model, and every setting that the training reads."""
    model = Path(config.model.path)
    weights = sorted(model.glob("*.safetensors")) if model.is_dir() else []
    learner = asdict(config.learner)
    values = {
        "demonstrations": version,
        "model": [hashlib.sha256(file.read_bytes()).hexdigest() for file in weights] or config.model.path,
        "pixels": [config.model.min_pixels, config.model.max_pixels, config.model.thumbnail_max_pixels],
        "sft": {name: value for name, value in asdict(config.sft).items() if name != "cache_dir"},
        "learner": {name: learner[name] for name in ("dtype", "world_size", "weight_decay", "betas", "grad_clip", "packing")},
        "seed": config.run.seed,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
