from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mmsr_ray.agent.tokens import Codec
from tests.tools.web import Web


@pytest_asyncio.fixture
async def web() -> AsyncIterator[Web]:
    server = Web()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
def codec(tiny_model: Path) -> Codec:
    return Codec.load(tiny_model, min_pixels=56 * 56, max_pixels=112 * 112, thumbnail_max_pixels=56 * 56)
