"""Runners whose policy says what is written here: for tests of what lies around the engine, which starts in a moment as it has no model.

What such a run spends, and how long a step takes, is known beforehand; learner, tools, weight store and Tune are the real ones.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from mmsr_ray.agent.episode import run_episode
from mmsr_ray.rollout.engine import VLLMEngine, load_codec
from mmsr_ray.rollout.env_runner import SearchEnvRunner
from mmsr_ray.types import Generation, Picture, Sample, Sampling, Trajectory
from mmsr_ray.weights.collective import Invitation

SEARCH, ANSWER = "<reason>Who is this?</reason><search><img></search>", "<reason>It says so.</reason><answer>Ada</answer>"


class NoModel(VLLMEngine):
    """Knows the tokens and which version of the weights it would sample with."""

    async def start(self) -> None:
        self._codec = load_codec(self._config)

    async def check(self) -> None: ...

    async def sync(self, version: int, invitation: Invitation | None = None) -> dict[str, float]:
        self._version = version
        return dict.fromkeys(("wait", "pause", "update", "total"), 0.0)


class Answerer(SearchEnvRunner):
    """Answers at once."""

    turns: tuple[str, ...] = (ANSWER,)
    turn_seconds = 0.0

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self._engine = NoModel(self._settings, self._store, self._settings.run.namespace)

    async def _episode(self, sample: Sample, index: int, workflow: str, sampling: Sampling) -> Trajectory:
        assert self._tools is not None
        codec, version, turns = self._engine.codec, await self._engine.version(), iter(self.turns)

        async def generate(prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
            await asyncio.sleep(self.turn_seconds)
            said = codec.encode_turn(next(turns))
            return Generation(said, [-0.5] * len(said), [version] * len(said), True)

        return await run_episode(
            sample,
            index=index,
            workflow=workflow,
            generate=generate,
            tools=self._tools,
            codec=codec,
            prompts=self._prompts,
            limits=self._settings.agent,
            sampling=sampling,
        )


class Unhurried(Answerer):
    """Long enough at each turn for something to happen meanwhile."""

    turn_seconds = 1.0


class Searcher(Answerer):
    """Always searches by image once, and then answers."""

    turns = (SEARCH, ANSWER)
