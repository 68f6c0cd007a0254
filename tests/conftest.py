"""Fixtures shared by all rooms: the tiny policy, built once a session, and a judge."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from mmsr_ray.atlas.policy import build_policy
from tests.rewards.judge_server import JudgeServer

# Heavy tests run beside: how long an example takes says nothing.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random tiny Qwen2.5-VL with tokenizer, processor files and chat template."""
    return build_policy(tmp_path_factory.mktemp("tiny-model"))


@pytest_asyncio.fixture
async def judge(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JudgeServer]:
    """Running, its key in JUDGE_KEY."""
    monkeypatch.setenv("JUDGE_KEY", JudgeServer.key)
    made = JudgeServer()
    await made.start()
    yield made
    await made.stop()
