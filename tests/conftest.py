"""Fixtures shared by all rooms: the tiny policy, built once a session, a Ray, jobs run in this process, and a judge."""

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import pytest
import pytest_asyncio
import ray
from hypothesis import HealthCheck, settings

from mmsr_ray.atlas.policy import build_policy
from tests.rewards.judge_server import JudgeServer

# Heavy tests run beside: how long an example takes says nothing.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that hold heavy tests come first: a long one at the end would keep one worker and leave the other idle."""
    heavy = {item.path for item in items if item.get_closest_marker("heavy")}
    items.sort(key=lambda item: item.path not in heavy)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random tiny Qwen2.5-VL with tokenizer, processor files and chat template."""
    return build_policy(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of 4 logical CPUs."""
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=400 << 20, namespace="mmsr", logging_level=logging.WARNING)
    yield
    ray.shutdown()


@pytest.fixture
def run_here(cluster: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int], list[str]], int]:
    """The exit status of a job's `main` with these arguments, in this process: its Ray is up and its imports are done."""

    def run(main: Callable[[], int], arguments: list[str]) -> int:
        monkeypatch.setattr("sys.argv", arguments)
        return main()

    monkeypatch.setattr("jobs.command.connect", lambda config: None)
    return run


@pytest_asyncio.fixture
async def judge(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JudgeServer]:
    """Running, its key in JUDGE_KEY."""
    monkeypatch.setenv("JUDGE_KEY", JudgeServer.key)
    made = JudgeServer()
    await made.start()
    yield made
    await made.stop()
