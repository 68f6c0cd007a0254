"""The deployment that owns one engine, as a rollout runner does: turns in, tokens out, weights as they are wanted.

Promise: it serves no turn before it has the newest proven weights. When the engine dies the process exits, so that Serve
starts another one and callers see a dead replica. Cancelling a call ends its request in the engine.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import uuid
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mmsr_ray.config import from_dict
from mmsr_ray.rollout.engine import EngineDead, VLLMEngine
from mmsr_ray.serving.logs import log_beside_serve
from mmsr_ray.serving.weights import serving_store
from mmsr_ray.types import Generation, Picture, Sampling

logger = logging.getLogger(__name__)
LOOK_SECONDS = 0.5  # between looks at the engine's health and at the weights that are wanted
ASK_SECONDS = 120.0  # to be told which weights are wanted: they may have to be published anew first


class Engine:
    async def __init__(self, settings: dict[str, Any], weights: DeploymentHandle) -> None:
        log_beside_serve()
        config = from_dict(settings)
        self._weights, self._id, self._path = weights, uuid.uuid4().hex[:8], ""
        self._engine = VLLMEngine(config, serving_store(config), config.run.namespace)
        await self._engine.start()
        await self._follow()
        self._watching = asyncio.create_task(self._watch())

    async def generate(self, prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        """As `VLLMEngine.generate`. Raises EngineError."""
        return await self._engine.generate(prompt_ids, pictures, sampling)

    async def stats(self) -> dict[str, int]:
        """`requests` in the engine now, `tokens` of finished turns since its start, `version` of its weights, `pid` of this replica."""
        engine = self._engine
        return {"requests": engine.requests, "tokens": engine.tokens, "version": await engine.version(), "pid": os.getpid()}

    async def check_health(self) -> None:
        await self._engine.check()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._engine.check()
                await self._follow()
            except EngineDead as error:
                await self._exit(error)

    async def _follow(self) -> None:
        """Serve the weights that are wanted. Raises EngineDead. Where nobody says what is wanted, go on as before."""
        version = await self._engine.version()
        try:
            async with asyncio.timeout(ASK_SECONDS):
                wanted, path = await self._weights.wanted.remote(self._id, version, self._path)
        except (TimeoutError, RayError, RayServeException) as error:
            logger.warning("no word about weights: %s", type(error).__name__)
            return
        if wanted > 0 and wanted != version:
            seconds = await self._engine.sync(wanted)
            self._path = path
            logger.info("engine %s serves weight version %d of %s, after %.2f s", self._id, wanted, path, seconds["total"])

    async def _exit(self, error: EngineDead) -> None:
        logger.critical("this replica exits, to be replaced: %s", error)
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._weights.gone.remote(self._id)
        except (TimeoutError, RayError, RayServeException) as lost:
            logger.warning("nobody heard of it: %s", type(lost).__name__)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)  # nothing must wait for a dead engine
