"""The two tools of the agent: image search and text search. Spec §2.2.

Promise: `image_search` and `text_search` never raise and end by `config.deadline_seconds`; a result has at least one
hit or a typed failure. Each step goes cache -> single-flight -> concurrency -> rate limit -> breaker -> provider. A page
or thumbnail that fails is replaced by the next one until `topk` are there or the list ends; at the deadline what is
there is returned. One instance serves one event loop; no Ray in here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from mmsr_ray.config import ProviderConfig, ToolsConfig
from mmsr_ray.tools import foreign
from mmsr_ray.tools.cache import FlightCache, key_of, open_store
from mmsr_ray.tools.errors import ProviderError, Redactor, ToolsError
from mmsr_ray.tools.guard import Guard, Trace
from mmsr_ray.tools.http import Http, public, reachable
from mmsr_ray.tools.limits import Breaker
from mmsr_ray.tools.providers import THUMBNAILS, build, kind_of, limited_services, services
from mmsr_ray.tools.providers.base import Keys, Lead, Page
from mmsr_ray.tools.quota import Quota, Wallet
from mmsr_ray.types import ImageHit, Picture, TextHit, ToolFailure, ToolKind, ToolResult

logger = logging.getLogger(__name__)
H = TypeVar("H", ImageHit, TextHit)

_SPARES = 2  # leads kept per hit wanted
_INLINE_BYTES = 100_000  # a bigger thumbnail is decoded on a thread


class SearchTools:
    """Satisfies the agent's `Tools` protocol. `topk` hits at most per call; `share` actors split the concurrency."""

    def __init__(self, config: ToolsConfig, topk: int, quota: Quota, keys: Keys, *, share: int = 1) -> None:
        self._config, self._topk = config, topk
        self._http = Http(Redactor(keys.secrets()))
        self._providers = build(config, self._http, keys)
        self._cache = FlightCache(open_store(config.cache_dir, config.cache_memory_bytes))
        self._guards = {name: self._guard(name, section, quota, share) for name, section in limited_services(config).items()}

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

    # ------------------------------------------------------------------------------------------------ image search

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        """Web pages whose main picture looks like this one, in order of relevance. Without a `url` the bytes are uploaded."""
        return await self.picture_search(hashlib.sha256(picture_bytes).hexdigest(), url, lambda: picture_bytes)

    async def picture_search(self, sha: str, url: str | None, data: Callable[[], bytes]) -> ToolResult:
        """Image search by content hash; `data` is called only when the bytes are needed."""

        async def work(trace: Trace) -> Sequence[ImageHit]:
            leads = await self._visual_leads(sha, url, data, trace)
            return await _fill(leads, self._topk, lambda lead: self._image_hit(lead, trace), trace.deadline)

        return await self._call(ToolKind.IMAGE, sha, work)

    async def _visual_leads(self, sha: str, url: str | None, data: Callable[[], bytes], trace: Trace) -> list[Lead]:
        provider, limit = self._providers.image_search, _SPARES * self._topk

        async def search() -> list[Lead]:
            source = foreign.web_url(url) or await self._upload(sha, data, trace)
            leads = await self._guards["image_search"].call(trace, lambda: provider.search(source))
            return [lead for lead in leads if lead.title and lead.thumbnail][:limit]

        return await self._leads("image", key_of(provider.identity, str(limit), sha), search, trace)

    async def _upload(self, sha: str, data: Callable[[], bytes], trace: Trace) -> str:
        async def produce() -> bytes:
            return (await self._guards["image_host"].call(trace, lambda: self._providers.image_host.upload(data()))).encode()

        return (await self._cached("upload", key_of(self._providers.image_host.identity, sha), produce, trace)).decode()

    async def _image_hit(self, lead: Lead, trace: Trace) -> ImageHit:
        async def produce() -> bytes:
            if lead.thumbnail.startswith("data:"):
                data = foreign.data_url(lead.thumbnail, self._config.thumbnail_bytes)
            else:
                data = await self._guards[THUMBNAILS].call(trace, lambda: self._thumbnail(lead.thumbnail))
            if len(data) < _INLINE_BYTES:
                foreign.check_picture(data)
            else:
                await asyncio.to_thread(foreign.check_picture, data)
            return data

        data = await self._cached("thumbnail", key_of(lead.thumbnail), produce, trace)
        return ImageHit(lead.title, Picture(data, hashlib.sha256(data).hexdigest()), lead.url)

    async def _thumbnail(self, url: str) -> bytes:
        timeout, limit = self._config.image_search.timeout_seconds, self._config.thumbnail_bytes
        return (await self._http.request("GET", url, timeout=timeout, limit=limit, redirects=True)).body

    # ------------------------------------------------------------------------------------------------ text search

    async def text_search(self, query: str, question: str) -> ToolResult:
        """Summaries of the pages found for `query`, each written for the user's `question`."""

        provider, limit = self._providers.text_search, _SPARES * self._topk

        async def work(trace: Trace) -> Sequence[TextHit]:
            async def search() -> list[Lead]:
                return await self._guards["text_search"].call(trace, lambda: provider.search(query, limit))

            leads = await self._leads("query", key_of(provider.identity, str(limit), query), search, trace)
            return await _fill(leads, self._topk, lambda lead: self._text_hit(lead, question, trace), trace.deadline)

        return await self._call(ToolKind.TEXT, query, work)

    async def _text_hit(self, lead: Lead, question: str, trace: Trace) -> TextHit:
        page = await self._page(lead.url, trace)
        summariser = self._providers.summariser

        async def produce() -> bytes:
            return (await self._guards["summariser"].call(trace, lambda: summariser.summarise(page.text, question))).encode()

        summary = await self._cached("summary", key_of(summariser.identity, page.text, question), produce, trace)
        return TextHit(lead.url, summary.decode(), lead.title or page.title)

    async def _page(self, url: str, trace: Trace) -> Page:
        async def produce() -> bytes:
            page = await self._guards["reader"].call(trace, lambda: self._providers.reader.read(url))
            text = foreign.clean_text(page.text, self._config.page_chars)
            if not text:
                raise ProviderError(ToolFailure.NO_RESULTS, f"{public(url)}: the page has no text")
            return json.dumps([page.title, text]).encode()

        key = key_of(self._providers.reader.identity, str(self._config.page_chars), url)
        title, text = json.loads(await self._cached("page", key, produce, trace))
        return Page(title, text)

    # ------------------------------------------------------------------------------------------------ both

    async def _leads(self, layer: str, key: str, search: Callable[[], Awaitable[list[Lead]]], trace: Trace) -> list[Lead]:
        """A provider's leads through the cache. "Nothing found" is an answer that was paid for: it is kept too."""

        async def produce() -> bytes:
            try:
                leads = await search()
            except ProviderError as error:
                if error.failure is not ToolFailure.NO_RESULTS:
                    raise
                leads = []
            return json.dumps([[lead.title, lead.url, lead.thumbnail] for lead in leads]).encode()

        return [Lead(*fields) for fields in json.loads(await self._cached(layer, key, produce, trace))]

    async def _cached(self, layer: str, key: str, produce: Callable[[], Awaitable[bytes]], trace: Trace) -> bytes:
        return await self._cache.get(layer, key, produce, trace.deadline)

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


async def _fill(leads: Sequence[Lead], wanted: int, fetch: Callable[[Lead], Awaitable[H]], deadline: float) -> list[H]:
    """Up to `wanted` hits in the order of `leads`, fetched together; a lead that fails is replaced by the next.

    At `deadline` what is there is returned. Raises ProviderError when there is no hit: NO_RESULTS if all that failed
    was pages of their own making, else the infrastructure's failure.
    """
    loop = asyncio.get_running_loop()
    remaining: Iterator[tuple[int, Lead]] = iter(enumerate(leads))
    hits: dict[int, H] = {}
    errors: list[ProviderError] = []

    async def slot() -> None:
        for rank, lead in remaining:  # shared by all slots: each lead is tried once
            if loop.time() >= deadline:
                return
            try:
                hits[rank] = await fetch(lead)
                return
            except ProviderError as error:
                errors.append(error)

    slots = [asyncio.create_task(slot()) for _ in range(min(wanted, len(leads)))]
    try:
        async with asyncio.timeout_at(deadline):
            await asyncio.gather(*slots)
    except TimeoutError:
        errors.append(ProviderError(ToolFailure.TIMEOUT, "no hit before the deadline"))
    finally:
        for task in slots:
            task.cancel()
    if not hits and errors:
        raise next((e for e in errors if e.failure.infra), errors[0])
    return [hits[rank] for rank in sorted(hits)]
