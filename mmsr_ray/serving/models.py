"""The models behind one endpoint. Pure.

Promise: each model is a config of its own, as if it were served alone; what they share are the agent's limits, prompts and searches and
the settings of their engines. The first is the one that is meant where a request names none.
"""

from __future__ import annotations

from dataclasses import replace

from mmsr_ray.config import Config


def models_of(config: Config) -> dict[str, Config]:
    """By name: `model` as serving.model_name, then serving.models."""
    c = config.serving
    others = {
        name: replace(
            config,
            model=replace(config.model, path=path),
            serving=replace(c, model_name=name, models={}, weights_watch=c.models_watch.get(name, ""), models_watch={}),
        )
        for name, path in c.models.items()
    }
    return {c.model_name: config} | others
