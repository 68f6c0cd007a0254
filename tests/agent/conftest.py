"""Fixtures of the agent's tests: the tiny model's codec, both prompt sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.tokens import Codec
from mmsr_ray.config import AgentConfig
from tests.agent.scripted import Script


@pytest.fixture(scope="session")
def codec(tiny_model: Path) -> Codec:
    return Codec.load(tiny_model, min_pixels=56 * 56, max_pixels=112 * 112, thumbnail_max_pixels=56 * 56)


@pytest.fixture(scope="session", params=["standard", "brief"])
def prompts(request: pytest.FixtureRequest) -> PromptSet:
    return PromptSet.load(request.param)


@pytest.fixture
def limits() -> AgentConfig:
    return AgentConfig(max_turn_tokens=256)


@pytest.fixture
def script(codec: Codec) -> Callable[..., Script]:
    return lambda *turns, delay=0.0: Script(codec, turns, delay)
