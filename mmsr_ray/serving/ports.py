"""What an episode needs, behind Serve handles: an engine that may be any replica, and the searches.

Promise: a turn whose replica died is asked again, of whichever replica there is; the seed travels along. Cancelling a call
cancels it in the replica.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mmsr_ray.agent.ports import EngineError
from mmsr_ray.rollout.engine import EngineDead
from mmsr_ray.types import Generation, Picture, Sample, Sampling, ToolFailure, ToolKind, ToolResult

logger = logging.getLogger(__name__)
RETRY_SECONDS = 0.2  # before the second attempt; doubles, with jitter


@dataclass(frozen=True, slots=True)
class Question:
    """What an ingress asks an agent."""

    sample: Sample
    model: str
    workflow: str
    sampling: Sampling
    payer: str  # name of the key


class ServedEngine:
    """Satisfies `Generate`."""

    def __init__(self, handle: DeploymentHandle, attempts: int) -> None:
        self._handle, self._attempts = handle, attempts

    async def __call__(self, prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        why = ""
        for attempt in range(self._attempts):
            if attempt:
                await asyncio.sleep(RETRY_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            try:
                return await called(self._handle.generate.remote(prompt_ids, pictures, sampling))
            except (EngineDead, RayActorError) as error:
                why = type(error).__name__
                logger.warning("a turn lost its engine (%s): attempt %d of %d", why, attempt + 1, self._attempts)
            except (RayError, RayServeException) as error:
                if isinstance(error, EngineError):
                    raise
                raise EngineError(f"the engine's replica failed: {type(error).__name__}") from error
        raise EngineError(f"no engine lived long enough for a turn: {why}")


class ServedTools:
    """Satisfies `Tools`; a replica that is lost is a typed failure, after a second attempt."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        return await self._call(ToolKind.IMAGE, "", "image_search", picture_bytes, url, question)

    async def text_search(self, query: str, question: str) -> ToolResult:
        return await self._call(ToolKind.TEXT, query, "text_search", query, question)

    async def _call(self, kind: ToolKind, query: str, method: str, *args: Any) -> ToolResult:
        began, why = time.monotonic(), ""
        for attempt in range(2):
            if attempt:
                await asyncio.sleep(RETRY_SECONDS)
            try:
                return await called(getattr(self._handle, method).remote(*args))
            except (RayError, RayServeException) as error:
                why = type(error).__name__
        return ToolResult(kind, query, failure=ToolFailure.UNAVAILABLE, detail=f"searches lost ({why})", seconds=time.monotonic() - began)


async def called(response: Any) -> Any:
    """The answer to a call of a handle; cancelled with whoever waits for it."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
