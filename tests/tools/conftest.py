from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.tools.web import Web


@pytest_asyncio.fixture
async def web() -> AsyncIterator[Web]:
    server = Web()
    await server.start()
    yield server
    await server.stop()
