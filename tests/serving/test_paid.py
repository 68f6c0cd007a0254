"""A key pays for the searches that were made for it."""

from __future__ import annotations

import asyncio

from mmsr_ray.serving.paid import PaidTools
from mmsr_ray.types import ToolFailure, ToolKind, ToolResult


class Service:
    """Its searches take a step of the loop, two cents each."""

    def __init__(self) -> None:
        self.done = asyncio.Event()

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        return await self.text_search("", question)

    async def text_search(self, query: str, question: str) -> ToolResult:
        await self.done.wait()
        return ToolResult(ToolKind.TEXT, query, failure=ToolFailure.NO_RESULTS, cost_usd=0.02)


async def test_a_client_that_leaves_pays_for_the_search_that_has_begun() -> None:
    charged: list[float] = []

    async def charge(cost: float) -> None:
        charged.append(cost)

    service = Service()
    tools = PaidTools(service, charge)
    left, stays = (asyncio.create_task(search) for search in (tools.text_search("x", "Who?"), tools.image_search(b"", None, "Who?")))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait([left])
    assert left.cancelled() and charged == []
    service.done.set()
    assert (await stays).cost_usd == 0.02
    assert charged == [0.02, 0.02]
