"""A closed model behind an OpenAI-compatible service (tools.model), asked as our own models are.

Promise: the same workflows, prompts, tools, limits and scores as with an engine; only the turns come from the service. A service
that is down or limits for longer than a call's deadline is an infrastructure error after the retries, never a wrong answer; a
refusal is a turn that asks for nothing, so the policy's error, and so is a conversation that the service's context cannot hold. Greedy answers come from the tools' cache when asked for again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from mmsr_ray.agent.chat import ChatDialogue
from mmsr_ray.agent.conversation import Parts
from mmsr_ray.agent.episode import EngineError, Tools, converse
from mmsr_ray.agent.pictures import Geometry, PictureLimits, Pictures
from mmsr_ray.agent.ports import Reply, TooLong
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.config import Config, from_dict
from mmsr_ray.evaluation.settings import sampling
from mmsr_ray.rewards.judge import Judge
from mmsr_ray.rewards.score import reward_in_evaluation
from mmsr_ray.rollout.bunches import Bunches
from mmsr_ray.rollout.scoring import AFTER_WARMUP, raise_if_not_on_tape, scored
from mmsr_ray.rollout.summary import summarise
from mmsr_ray.tools.actor import RemoteTools
from mmsr_ray.tools.providers.models import Request, Said
from mmsr_ray.types import Outcome, Sample, Sampling, TextHit, ToolResult, Trajectory, TrajectorySummary

RETRY_SECONDS = 1.0  # before the second attempt at a question; doubles, with jitter
GEOMETRY = Geometry(patch=14, merge=2)  # Qwen2.5-VL's: a closed model is shown pictures of the size that ours is shown


class Model(Protocol):
    """The tools (`tools.actor.RemoteTools`, `tools.local.LocalTools`), where tools.model names a service."""

    async def complete(self, request: Request) -> ToolResult:
        """Never raises. One text hit, a packed `Said`, or a typed failure of the infrastructure."""
        ...


class Asked:
    """The model of one episode (the agent's `Complete` protocol); `replies` are the calls so far."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.replies: list[ToolResult] = []

    async def __call__(self, messages: Sequence[dict[str, Any]], sampling: Sampling) -> Reply:
        seed = sampling.seed if sampling.temperature > 0 else None
        result = await self._model.complete(Request(messages, sampling.max_tokens, sampling.temperature, seed))
        self.replies.append(result)
        if not result.ok:
            raise EngineError(f"{result.failure} {result.detail}".strip())
        (hit,) = result.hits
        assert isinstance(hit, TextHit)
        said = Said.unpacked(hit.summary)
        if said.too_long:
            raise TooLong("the service's context cannot hold the conversation")
        return Reply(said.text, said.output_tokens, not said.cut, result.seconds, said.input_tokens)


class Endpoint:
    """Answers questions with a chat service. Of one event loop; no Ray in here."""

    def __init__(self, config: Config, model: Model, tools: Tools, judge: Judge | None) -> None:
        self._config, self._model, self._tools, self._judge = config, model, tools, judge
        self._prompts = PromptSet.load(config.agent.prompts)
        shown, data = config.model, config.data
        self._pictures = Pictures(
            GEOMETRY,
            min_pixels=shown.min_pixels,
            max_pixels=shown.max_pixels,
            thumbnail_max_pixels=shown.thumbnail_max_pixels,
            limits=PictureLimits(data.max_image_bytes, data.max_image_pixels),
        )

    async def answer(self, sample: Sample, workflow: str, sampling: Sampling, index: int = 0) -> Trajectory:
        """One scored episode, run anew while infrastructure breaks it; after the last attempt, or out of money, unscored.

        Raises InputError for what cannot be asked, and TapeMiss.
        """
        for attempt in range(self._config.rollout.infra_retries + 1):
            if attempt:
                await asyncio.sleep(RETRY_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            trajectory = await self._episode(sample, workflow, sampling, index)
            raise_if_not_on_tape(trajectory)
            if trajectory.outcome is not Outcome.INFRA_ERROR:
                reward, paths = reward_in_evaluation(self._config), self._config.agent.allowed_paths
                return await scored(trajectory, sample, reward, paths, self._judge, AFTER_WARMUP)
            if trajectory.out_of_money:
                break
        return trajectory

    async def _episode(self, sample: Sample, workflow: str, sampling: Sampling, index: int) -> Trajectory:
        asked = Asked(self._model)
        parts = Parts(self._tools, self._prompts, self._config.agent, sampling)
        trajectory = await converse(sample, index=index, workflow=workflow, transcript=ChatDialogue(self._pictures, asked), parts=parts)
        return replace(trajectory, replies=tuple(asked.replies))


class EndpointRunner(Bunches):
    """`Endpoint` as an actor, with the methods of `rollout.env_runner.SearchEnvRunner` that evaluations use.

    `settings` is the run's Config as plain containers; its tools must be running (`start_tools`).
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._config = from_dict(settings)
        tools = RemoteTools.connect(self._config)
        self._endpoint = Endpoint(self._config, tools, tools, tools if self._config.tools.judge.kind != "none" else None)

    async def ping(self) -> str:
        """Answers once questions can be asked."""
        return "pong"

    async def evaluate_sample(self, sample: Sample, workflow: str) -> tuple[TrajectorySummary, Trajectory]:
        """One scored episode, greedy unless `evaluation.temperature` says otherwise. Call it with num_returns=2.

        INFRA_ERROR is returned as such after the retries. Raises InputError.
        """
        c = self._config
        how = sampling(c.evaluation, c.agent.max_turn_tokens, c.run.seed, sample.uid)
        trajectory = await self._endpoint.answer(sample, workflow, how)
        return summarise(trajectory, sample), trajectory

    async def stop(self) -> None:
        """Nothing of its own is running."""
