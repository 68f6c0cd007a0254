"""The deployment that runs episodes: a question in, its events out. CPU only; any number of replicas."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

from ray.serve.handle import DeploymentHandle

from mmsr_ray.agent.conversation import Parts
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.config import from_dict
from mmsr_ray.rollout.engine import load_codec
from mmsr_ray.serving.answering import batches
from mmsr_ray.serving.events import Event
from mmsr_ray.serving.logs import log_beside_serve
from mmsr_ray.serving.models import models_of
from mmsr_ray.serving.paid import PaidTools
from mmsr_ray.serving.ports import Question, ServedEngine, ServedTools, called
from mmsr_ray.serving.quotas import SharedQuotas


class Agent:
    async def __init__(
        self,
        settings: dict[str, Any],
        engines: dict[str, DeploymentHandle],
        searches: DeploymentHandle,
        book_keeper: DeploymentHandle | None = None,
    ) -> None:
        """`engines` by the names of `models_of`."""
        log_beside_serve()
        self._config = from_dict(settings)
        self._handles, self._searches = engines, searches
        self._engines = {name: ServedEngine(engine, self._config.serving.turn_attempts) for name, engine in engines.items()}
        self._tools = ServedTools(searches)
        self._quotas = SharedQuotas(book_keeper) if book_keeper else None
        self._codecs = {name: await asyncio.to_thread(load_codec, own) for name, own in models_of(self._config).items()}
        self._prompts = PromptSet.load(self._config.agent.prompts)

    async def run(self, question: Question) -> AsyncIterator[list[Event]]:
        """The events of one episode as they happen (`answering.batches`)."""
        async with aclosing(self._begun(question)) as told:
            async for batch in told:
                yield batch

    async def ask(self, question: Question) -> list[Event]:
        """The same once it is over: one message, where nobody watches."""
        async with aclosing(self._begun(question)) as told:
            return [event async for batch in told for event in batch]

    def _begun(self, question: Question) -> AsyncGenerator[list[Event], None]:
        tools = PaidTools(self._tools, partial(self._quotas.charge, question.payer)) if self._quotas else self._tools
        parts = Parts(tools, self._prompts, self._config.agent, question.sampling)
        return batches(question.sample, question.workflow, self._engines[question.model], self._codecs[question.model], parts)

    async def stats(self) -> dict[str, int]:
        """`pid` of this replica."""
        return {"pid": os.getpid()}

    async def ready(self) -> None:
        """Returns when an engine of each model and the searches answer."""
        for engine in self._handles.values():
            await called(engine.stats.remote())
        await called(self._searches.stats.remote())
