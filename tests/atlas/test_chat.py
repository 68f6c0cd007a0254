"""Atlas's teachers behind its chat endpoint: an endpoint evaluation runs whole on this machine, tools included."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mmsr_ray.atlas import web
from mmsr_ray.atlas.prepare import point_at
from mmsr_ray.atlas.world import World
from mmsr_ray.config import Config, ProviderConfig, load
from mmsr_ray.evaluation.endpoint import Endpoint
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.types import Need, Outcome, Sampling

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "atlas.yaml"
GREEDY = Sampling(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest_asyncio.fixture
async def base(world: World) -> AsyncIterator[str]:
    runner, url = await web.serve(world, "127.0.0.1", 0, web.Faults())
    yield url
    await runner.cleanup()


def settings(base: str, model: str, *overrides: str) -> Config:
    config = load(CONFIG, list(overrides))
    config.tools.model = ProviderConfig(kind="chat", url="{atlas}/v1", model=model, rate_per_second=0)
    config.tools = point_at(config.tools, base)
    return config


@pytest.mark.parametrize("prompts", ["brief", "standard"])
async def test_the_oracle_answers_over_http_in_every_workflow(world: World, base: str, prompts: str) -> None:
    config = settings(base, "atlas-oracle", f"agent.prompts={prompts}", "agent.max_prompt_tokens=2000", "agent.max_total_tokens=6000")
    questions = world.samples("test", 12)
    assert {sample.need for sample in questions} == set(Need)
    async with LocalTools(config) as tools:
        endpoint = Endpoint(config, tools, tools, None)
        for sample in questions:
            assert sample.need is not None
            demand = await endpoint.answer(sample, "on_demand", GREEDY)
            assert demand.reward is not None, demand.detail
            assert (demand.reward.correct, demand.reward.well_formed) == (True, True)
            assert sum(turn.tool is not None for turn in demand.turns) == sample.need.searches
            direct = await endpoint.answer(sample, "direct", GREEDY)
            assert direct.reward is not None and direct.reward.correct == (sample.need is Need.SEARCH_FREE)
            rag = await endpoint.answer(sample, "rag", GREEDY)
            assert rag.reward is not None
            assert rag.reward.correct or sample.need is Need.SEARCH_FREE, "the web is wrong about some of what the policy was taught"


async def test_a_turn_is_cut_at_its_limit(world: World, base: str) -> None:
    config = settings(base, "atlas-worldly")
    (sample, *_) = world.samples("test", 3)
    async with LocalTools(config) as tools:
        done = await Endpoint(config, tools, tools, None).answer(sample, "on_demand", Sampling(temperature=0.0, max_tokens=1))
    assert (done.outcome, done.detail) == (Outcome.POLICY_ERROR, "a turn hit its token limit")


async def test_a_model_that_is_not_there_is_no_wrong_answer(world: World, base: str) -> None:
    config = settings(base, "atlas-parrot")
    config.rollout.infra_retries = 0
    async with LocalTools(config) as tools:
        done = await Endpoint(config, tools, tools, None).answer(world.samples("test", 3)[0], "on_demand", GREEDY)
    assert (done.outcome, done.reward) == (Outcome.INFRA_ERROR, None)
    assert "there is no model atlas-parrot" in done.detail
