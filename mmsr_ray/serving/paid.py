"""Searches that somebody pays for.

Promise: what a search costs is charged when it is done, also where the client has left meanwhile: its service wants the money all the
same. So a search that has begun is not cancelled with its episode.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any

from mmsr_ray.agent.ports import Tools
from mmsr_ray.types import ToolResult

_begun: set[asyncio.Task[ToolResult]] = set()  # a task that nobody holds may be collected


class PaidTools:
    """Satisfies `Tools`, for one request."""

    def __init__(self, tools: Tools, charge: Callable[[float], Awaitable[None]]) -> None:
        self._tools, self._charge = tools, charge

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        return await self._done(self._tools.image_search(picture_bytes, url, question))

    async def text_search(self, query: str, question: str) -> ToolResult:
        return await self._done(self._tools.text_search(query, question))

    async def _done(self, search: Coroutine[Any, Any, ToolResult]) -> ToolResult:
        # In a context of its own: Ray cancels with a call whatever was called in its context.
        task = asyncio.create_task(self._charged(search), context=Context())
        _begun.add(task)
        task.add_done_callback(_begun.discard)
        return await asyncio.shield(task)

    async def _charged(self, search: Coroutine[Any, Any, ToolResult]) -> ToolResult:
        result = await search
        if result.cost_usd:
            await self._charge(result.cost_usd)
        return result
