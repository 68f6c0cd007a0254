"""The deployment that runs episodes: a question in, its events out. CPU only; any number of replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ray.serve.handle import DeploymentHandle

from mmsr_ray.agent.conversation import Parts
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.config import from_dict
from mmsr_ray.rollout.engine import load_codec
from mmsr_ray.serving.answering import answer
from mmsr_ray.serving.events import Event
from mmsr_ray.serving.ports import ServedEngine, ServedTools, called
from mmsr_ray.types import Sample, Sampling


class Agent:
    async def __init__(self, settings: dict[str, Any], engine: DeploymentHandle, searches: DeploymentHandle) -> None:
        self._config = from_dict(settings)
        self._engine_handle, self._searches = engine, searches
        self._engine = ServedEngine(engine, self._config.serving.turn_attempts)
        self._tools = ServedTools(searches)
        self._codec = await asyncio.to_thread(load_codec, self._config)
        self._prompts = PromptSet.load(self._config.agent.prompts)

    async def run(self, sample: Sample, workflow: str, sampling: Sampling) -> AsyncIterator[Event]:
        """The events of one episode (`answering.answer`)."""
        parts = Parts(self._tools, self._prompts, self._config.agent, sampling)
        events = answer(sample, workflow, self._engine, self._codec, parts)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    async def ready(self) -> None:
        """Returns when an engine and the searches answer."""
        await called(self._engine_handle.stats.remote())
        await called(self._searches.stats.remote())
