"""A runner whose policy always searches by image once and then answers: what it spends is known beforehand."""

from __future__ import annotations

from mmsr_ray.agent.episode import run_episode
from mmsr_ray.rollout.env_runner import SearchEnvRunner
from mmsr_ray.types import Generation, Picture, Sample, Sampling, Trajectory

TURNS = ("<reason>Who is this?</reason><search><img></search>", "<reason>It says so.</reason><answer>Ada</answer>")


class Searcher(SearchEnvRunner):
    async def _episode(self, sample: Sample, index: int, workflow: str, sampling: Sampling) -> Trajectory:
        assert self._tools is not None
        codec, version, turns = self._engine.codec, await self._engine.version(), iter(TURNS)

        async def generate(prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
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
