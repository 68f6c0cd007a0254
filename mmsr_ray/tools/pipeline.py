"""The two tools of the agent, image search and text search (spec §2.2), the judge of its answers, and a chat service as the policy.

Promise: `picture_search`, `text_search`, `judge` and `complete`, and `find_pictures` and `read_page`, which data sets are built
with, never raise and end by `config.deadline_seconds`; a result has at least one
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
from typing import Any, cast

from mmsr_ray.config import ProviderConfig, ToolsConfig
from mmsr_ray.rewards.judge import Case
from mmsr_ray.tools.cache import FlightCache
from mmsr_ray.tools.errors import ProviderError, Redactor
from mmsr_ray.tools.finder_tool import FinderTool
from mmsr_ray.tools.guard import Guard, Trace
from mmsr_ray.tools.http import open_http
from mmsr_ray.tools.image_tool import ImageTool
from mmsr_ray.tools.judge_tool import JudgeTool
from mmsr_ray.tools.limits import Breaker
from mmsr_ray.tools.measures import Measures, Observer
from mmsr_ray.tools.model_tool import ModelTool
from mmsr_ray.tools.parts import Parts
from mmsr_ray.tools.providers import CACHE, THUMBNAILS, build, kind_of, limited_services, services
from mmsr_ray.tools.providers.base import Keys, Provider
from mmsr_ray.tools.providers.models import Request
from mmsr_ray.tools.quota import Quota, Unlimited, Wallet
from mmsr_ray.tools.text_tool import TextTool
from mmsr_ray.tools.till import Bank, Payer, Till
from mmsr_ray.types import ToolFailure, ToolKind, ToolResult

logger = logging.getLogger(__name__)


def picture_sha(data: bytes, url: str | None) -> str:
    """The identity of a picture in every cache and on every tape: hex sha256 of its bytes, or of its URL where that is all there is."""
    return hashlib.sha256(data or (url or "").encode()).hexdigest()


class SearchTools:
    """The two searches. `topk` hits at most per call; `share` actors split the concurrency.

    Requests are paid with leases from `bank`; `observers` are told of every request and call.
    """

    def __init__(
        self,
        config: ToolsConfig,
        topk: int,
        quota: Quota,
        bank: Bank,
        keys: Keys,
        *,
        share: int = 1,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._config = config
        self._http = open_http(config, Redactor(keys.secrets()))
        self._providers = build(config, self._http, keys)
        self._cache = FlightCache.open(config.cache, keys.get(CACHE))
        self._till, self._measures = Till(bank), Measures(observers)
        self._guards = {name: self._guard(name, section, quota, share) for name, section in limited_services(config).items()}
        parts = Parts(config, topk, self._http, self._providers, self._cache, self._guards)
        self._images, self._texts, self._judge, self._model = ImageTool(parts), TextTool(parts), JudgeTool(parts), ModelTool(parts)
        self._finder = FinderTool(parts)

    def _guard(self, name: str, section: ProviderConfig, quota: Quota, share: int) -> Guard:
        many_hosts = name == THUMBNAILS or kind_of(name, section).many_hosts  # one dead host says nothing about the next
        shared_by_none = name == THUMBNAILS or not kind_of(name, section).remote  # no one service whose limits the job shares
        return Guard(
            name,
            section,
            Unlimited() if shared_by_none else Wallet(quota, name, section.rate_per_second),
            Breaker(0 if many_hosts else self._config.breaker_failures, self._config.breaker_cooldown_seconds),
            Payer(self._till, name, section.price, self._config.page_chars),
            self._measures,
            attempts=min(2, self._config.attempts) if many_hosts else self._config.attempts,
            concurrency=max(1, section.concurrency // share),
        )

    async def settle(self) -> None:
        """Report what was spent and give back what was leased beyond it."""
        await self._till.close()

    async def close(self) -> None:
        await self.settle()
        await self._cache.close()
        await self._http.close()

    async def picture_search(self, sha: str, data: bytes, url: str | None) -> ToolResult:
        """Web pages whose main picture looks like this one, in order of relevance. `sha` is its `picture_sha`."""
        return await self._call(ToolKind.IMAGE, sha, lambda trace: self._images.search(sha, data, url, trace))

    async def text_search(self, query: str, question: str) -> ToolResult:
        """Summaries of the pages found for `query`, each written for the user's `question`."""
        return await self._call(ToolKind.TEXT, query, lambda trace: self._texts.search(query, question, trace))

    async def judge(self, case: Case) -> ToolResult:
        """Whether an answer is right: one text hit, its title "yes" or "no"."""
        return await self._call(ToolKind.JUDGE, case.key, lambda trace: self._judge.judge(case, trace))

    async def complete(self, request: Request) -> ToolResult:
        """The next turn of a conversation: one text hit (`model_tool`)."""
        return await self._call(ToolKind.MODEL, request.key, lambda trace: self._model.complete(request, trace))

    async def find_pictures(self, query: str, wanted: int) -> ToolResult:
        """At most `wanted` pictures of the web for words, with their pages."""
        return await self._call(ToolKind.FINDER, query, lambda trace: self._finder.find(query, wanted, trace))

    async def read_page(self, url: str) -> ToolResult:
        """A page: one text hit, its summary the whole text. A page that is gone or empty is NO_RESULTS."""
        return await self._call(ToolKind.PAGE, url, lambda trace: self._texts.read(url, trace))

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
        result = ToolResult(
            kind,
            query,
            tuple(hits),
            failure,
            self._http.redact(detail),
            seconds=loop.time() - start,
            cached=failure is None and trace.requests == 0,
            attempts=max(1, trace.attempts),
            cost_usd=trace.cost_usd,
            partial=trace.partial,
        )
        self._measures.call(result)
        return result

    def _report(self, kind: ToolKind, error: Exception) -> None:
        """The traceback of a bug, without keys."""
        logger.error("%s call broke: %s", kind, self._http.redact("".join(traceback.format_exception(error))))

    async def problems(self, timeout: float = 5.0) -> list[str]:
        """One sentence for each service that does not answer or refuses its key; empty when all is well. Free of charge."""
        named = {name: cast(Provider, getattr(self._providers, name)) for name in services(self._config)}
        troubles = await asyncio.gather(*(provider.probe(timeout) for provider in named.values()))
        said = [f"tools.{name}: {trouble}" for name, trouble in zip(named, troubles, strict=True) if trouble]
        return [self._http.redact(sentence) for sentence in [*said, await self._cache.problem()] if sentence]

    def stats(self) -> dict[str, float]:
        """Counts since the start that add up over actors; their names stand in tools.measures. Concurrency is as it is now."""
        guards = {f"{name}.{what}": float(n) for name, guard in self._guards.items() for what, n in guard.stats().items()}
        return guards | self._measures.stats() | {f"cache.{what}": float(n) for what, n in self._cache.counts.items()}
