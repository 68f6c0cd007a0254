"""The Atlas web for tests of the stages, and tools that point at it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mmsr_ray.atlas.web import Faults, serve
from mmsr_ray.atlas.world import World
from mmsr_ray.config import Config, ProviderConfig
from mmsr_ray.data.construction.services import Services
from mmsr_ray.tools.local import LocalTools
from tests.tools.web import configure

WORLD = World(seed=3, known=4, demonstrated=8, train=24, test=8)


def pointed_at(base: str) -> Config:
    """A config whose construction uses the Atlas web at `base`."""
    config = configure(base)
    config.tools.picture_finder = ProviderConfig(kind="serpapi_images", url=f"{base}/search.json", rate_per_second=0)
    config.tools.model = ProviderConfig(kind="chat", url=f"{base}/v1", model="atlas", rate_per_second=0)
    return config


@asynccontextmanager
async def services(faults: Faults | None = None) -> AsyncIterator[tuple[Services, Config]]:
    runner, base = await serve(WORLD, "127.0.0.1", 0, faults or Faults())
    config = pointed_at(base)
    try:
        async with LocalTools(config) as tools:
            yield Services(tools, structured=True), config
    finally:
        await runner.cleanup()
