"""The two tools of the agent: image search and text search. Spec §2.2.

Promise: `image_search` and `text_search` never raise and end by `config.deadline_seconds`; a result has at least one
hit or a typed failure. Each step goes cache -> single-flight -> concurrency -> rate limit -> breaker -> provider. A page
or thumbnail that fails is replaced by the next one until `topk` are there or the list ends; at the deadline what is
there is returned. One instance serves one event loop; no Ray in here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from mmsr_ray.config import ProviderConfig, ToolsConfig
from mmsr_ray.tools.cache import FlightCache, open_store
from mmsr_ray.tools.errors import ProviderError, Redactor, ToolsError
from mmsr_ray.tools.guard import Guard, Trace
from mmsr_ray.tools.http import open_http, public, reachable
from mmsr_ray.tools.image_tool import ImageTool
from mmsr_ray.tools.limits import Breaker
from mmsr_ray.tools.parts import Parts
from mmsr_ray.tools.providers import THUMBNAILS, build, kind_of, limited_services, services
from mmsr_ray.tools.providers.base import Keys
from mmsr_ray.tools.quota import Quota, Wallet
from mmsr_ray.tools.text_tool import TextTool
from mmsr_ray.types import ToolFailure, ToolKind, ToolResult

logger = logging.getLogger(__name__)


class SearchTools:
    """Satisfies the agent's `Tools` protocol. `topk` hits at most per call; `share` actors split the concurrency."""

    def __init__(self, config: ToolsConfig, topk: int, quota: Quota, keys: Keys, *, share: int = 1) -> None:
        self._config = config
        self._http = open_http(config, Redactor(keys.secrets()))
        self._providers = build(config, self._http, keys)
        self._cache = FlightCache(open_store(config.cache))
        self._guards = {name: self._guard(name, section, quota, share) for name, section in limited_services(config).items()}
        parts = Parts(config, topk, self._http, self._providers, self._cache, self._guards)
        self._images, self._texts = ImageTool(parts), TextTool(parts)

    def _guard(self, name: str, section: ProviderConfig, quota: Quota, share: int) -> Guard:
        many_hosts = name == THUMBNAILS  # one dead host says nothing about the next
        return Guard(
            name,
            section,
            Wallet(quota, name, section.rate_per_second),
            Breaker(0 if many_hosts else self._config.breaker_failures, self._config.breaker_cooldown_seconds),
            attempts=min(2, self._config.attempts) if many_hosts else self._config.attempts,
            concurrency=max(1, section.concurrency // share),
        )

    async def close(self) -> None:
        await self._http.close()
        self._cache.store.close()

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        """Web pages whose main picture looks like this one, in order of relevance."""
        return await self.picture_search(hashlib.sha256(picture_bytes or (url or "").encode()).hexdigest(), picture_bytes, url)

    async def picture_search(self, sha: str, data: bytes, url: str | None) -> ToolResult:
        """Image search where the content hash is known."""
        return await self._call(ToolKind.IMAGE, sha, lambda trace: self._images.search(sha, data, url, trace))

    async def text_search(self, query: str, question: str) -> ToolResult:
        """Summaries of the pages found for `query`, each written for the user's `question`."""
        return await self._call(ToolKind.TEXT, query, lambda trace: self._texts.search(query, question, trace))

    async def _call(self, kind: ToolKind, query: str, work: Callable[[Trace], Awaitable[Sequence[Any]]]) -> ToolResult:
        """The boundary: whatever happens inside becomes a typed result."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        trace = Trace(start + self._config.deadline_seconds)
        hits: Sequence[Any] = ()
        failure, detail = None, ""
        try:
            hits = await work(trace)
            if not hits:
                failure, detail = ToolFailure.NO_RESULTS, "nothing found"
        except ProviderError as error:
            failure, detail = error.failure, error.detail
        except Exception as error:  # a bug in here must not kill hundreds of rollouts; it is loud in the log and counted
            self._report(kind, error)
            failure, detail = ToolFailure.BAD_RESPONSE, f"{type(error).__name__} in the tool"
        return ToolResult(
            kind,
            query,
            tuple(hits),
            failure,
            self._http.redact(detail),
            seconds=loop.time() - start,
            cached=failure is None and trace.requests == 0,
            attempts=max(1, trace.attempts),
            cost_usd=trace.cost_usd,
        )

    def _report(self, kind: ToolKind, error: Exception) -> None:
        """The traceback of a bug, without keys."""
        logger.error("%s search broke: %s", kind, self._http.redact("".join(traceback.format_exception(error))))

    async def problems(self, timeout: float = 5.0) -> list[str]:
        """One sentence for each service that does not answer; empty when all do. Costs nothing at any provider."""
        sections = {name: section for name, section in services(self._config).items() if kind_of(name, section).needs_url}
        whys = await asyncio.gather(*(reachable(self._http, section.url, timeout) for section in sections.values()))
        return [
            f"tools.{name}: nothing answers at {public(section.url)} ({why}): start the {section.kind} service or correct tools.{name}.url"
            for (name, section), why in zip(sections.items(), whys, strict=True)
            if why
        ]

    async def check(self) -> None:
        """Raises ToolsError naming every service that does not answer, and the remedy."""
        if found := await self.problems():
            raise ToolsError("; ".join(found))

    def stats(self) -> dict[str, float]:
        """Counters since the start: <service>.requests, .<failure>, .breaker_opened, .cost_usd, cache.<layer>.hits ..."""
        counts = {f"{name}.{what}": float(n) for name, guard in self._guards.items() for what, n in guard.counts.items()}
        costs = {f"{name}.cost_usd": guard.cost_usd for name, guard in self._guards.items() if guard.cost_usd}
        return counts | costs | {f"cache.{what}": float(n) for what, n in self._cache.counts.items()}
