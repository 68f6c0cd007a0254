"""The five released InfoSeek rows in the FVQA schema, through a scripted episode: real questions, real photos."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsr_ray.agent.episode import run_episode
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.tokens import Codec
from mmsr_ray.config import AgentConfig, DataConfig, RewardConfig
from mmsr_ray.data.reader import read_samples
from mmsr_ray.rewards.score import score
from mmsr_ray.types import Outcome, Sampling
from tests.agent.scripted import Script, Web

_ROWS = Path(os.environ.get("MMSR_FVQA_MINI") or Path(__file__).parents[3] / "shared" / "data" / "fvqa_mini.parquet")


@pytest.mark.skipif(not _ROWS.is_file(), reason=f"{_ROWS.name} is not there: set MMSR_FVQA_MINI to a parquet file of FVQA rows")
async def test_real_rows_through_an_episode(tiny_model: Path, script: Callable[..., Script]) -> None:
    config = AgentConfig(max_total_tokens=6000)
    codec = Codec.load(tiny_model, min_pixels=262_144, max_pixels=903_168, thumbnail_max_pixels=90_000)
    samples = read_samples(str(_ROWS), DataConfig(train="x", test="x"))
    assert len(samples) == 5
    for sample in samples:
        answer = f"<reason>It looks like it.</reason><answer>The {sample.answers[-1]}.</answer>"
        done = await run_episode(
            sample,
            index=0,
            workflow="on_demand",
            generate=script("<reason>Which one?</reason><search><img></search>", answer),
            tools=Web(),
            codec=codec,
            prompts=PromptSet.load("standard"),
            limits=config,
            sampling=Sampling(),
        )
        assert done.outcome is Outcome.OK
        pixels = done.tokens.grids[0].prod() * 14 * 14
        assert 262_144 <= pixels <= 903_168
        reward = score(done, sample, RewardConfig(), config.allowed_paths, step=1)
        assert reward.correct
        assert reward.total == pytest.approx(0.91)
