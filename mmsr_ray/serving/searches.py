"""The deployment that keeps the tool actors of the service alive and passes searches on to them.

Promise: as `RemoteTools`, calls never raise and never hang. The actors (tools.actors of them, with their cache, limits and
money) are started by this replica and end with it; the next replica starts them anew.
"""

from __future__ import annotations

import asyncio
from typing import Any

from mmsr_ray.config import from_dict
from mmsr_ray.tools.actor import start_tools
from mmsr_ray.types import ToolResult


class Searches:
    async def __init__(self, settings: dict[str, Any]) -> None:
        self._tools = await asyncio.to_thread(start_tools, from_dict(settings))

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        return await self._tools.image_search(picture_bytes, url, question)

    async def text_search(self, query: str, question: str) -> ToolResult:
        return await self._tools.text_search(query, question)

    async def stats(self) -> dict[str, float]:
        return await self._tools.stats()
