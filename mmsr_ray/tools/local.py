"""The tools in this process: for the command line, serving and tests. The same pipeline as in the actors."""

from __future__ import annotations

from collections.abc import Collection
from types import TracebackType
from typing import Self

from mmsr_ray.config import Config
from mmsr_ray.rewards.judge import Case
from mmsr_ray.tools import taped
from mmsr_ray.tools.errors import ToolsError
from mmsr_ray.tools.pipeline import SearchTools, picture_sha
from mmsr_ray.tools.providers import NAMES, limited_services, read_keys
from mmsr_ray.tools.providers.base import Keys
from mmsr_ray.tools.providers.models import Request
from mmsr_ray.tools.purse import Purse, SpentRecord, Unrecorded
from mmsr_ray.tools.quota import Buckets, LocalQuota
from mmsr_ray.tools.till import LocalBank
from mmsr_ray.types import ToolResult


class LocalTools:
    """One event loop's tools with limits of their own; only the keys of the services `needed` must be there.

    tools.budget_usd is for what `spent` records; without it, for this object's life. Raises ToolsError for a missing key,
    an unknown kind, or a tape that cannot be used.
    """

    def __init__(self, config: Config, needed: Collection[str] = NAMES, spent: SpentRecord | None = None) -> None:
        taped.prepare(config)
        keys = read_keys(config.tools, needed) if taped.needs_live(config.tools) else Keys({})

        def live() -> SearchTools:
            limited = limited_services(config.tools)
            bank = LocalBank(Purse.of(limited, config.tools, spent or Unrecorded()))
            return SearchTools(config.tools, config.agent.topk, LocalQuota(Buckets(limited)), bank, keys)

        self._tools = taped.with_tape(live, config.tools, config.agent.topk, keys)

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        """Web pages whose main picture looks like this one, in order of relevance."""
        return await self._tools.picture_search(picture_sha(picture_bytes, url), picture_bytes, url)

    async def text_search(self, query: str, question: str) -> ToolResult:
        """Summaries of the pages found for `query`, each written for the user's `question`."""
        return await self._tools.text_search(query, question)

    async def judge(self, case: Case) -> ToolResult:
        """Satisfies `rewards.judge.Judge`."""
        return await self._tools.judge(case)

    async def complete(self, request: Request) -> ToolResult:
        """The next turn of tools.model; satisfies `evaluation.endpoint.Model`."""
        return await self._tools.complete(request)

    async def find_pictures(self, query: str, wanted: int) -> ToolResult:
        """At most `wanted` pictures of the web for words, with their pages."""
        return await self._tools.find_pictures(query, wanted)

    async def read_page(self, url: str) -> ToolResult:
        """A page: one text hit, its summary the whole text."""
        return await self._tools.read_page(url)

    async def check(self) -> None:
        """Raises ToolsError naming every service that does not answer, and the remedy."""
        if found := await self._tools.problems():
            raise ToolsError("; ".join(found))

    def stats(self) -> dict[str, float]:
        """Counters since the start; names: tools.measures."""
        return self._tools.stats()

    async def settle(self) -> None:
        """Report what was spent and give back what was leased beyond it."""
        await self._tools.settle()

    async def close(self) -> None:
        await self._tools.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
