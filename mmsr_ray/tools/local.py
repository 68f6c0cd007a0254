"""The tools in this process: for the command line, serving and tests. The same pipeline as in the actors."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from mmsr_ray.config import Config
from mmsr_ray.tools.pipeline import SearchTools
from mmsr_ray.tools.providers import limited_services, read_keys
from mmsr_ray.tools.quota import Buckets, LocalQuota


class LocalTools(SearchTools):
    """One event loop's tools with limits of their own. Raises ToolsError for a missing key or an unknown kind."""

    def __init__(self, config: Config) -> None:
        keys = read_keys(config.tools)
        super().__init__(config.tools, config.agent.topk, LocalQuota(Buckets(limited_services(config.tools))), keys)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
