"""Text search: a query in, summaries of pages with their links out. Spec §2.2.

Promise: hits in the provider's order; pages are read and summarised side by side, and one that fails is replaced by the
next URL until `topk` are there, the list or the time ends. Three cache layers: query -> URLs, URL -> page, page and
question -> summary.
"""

from __future__ import annotations

import json

from mmsr_ray.tools import foreign
from mmsr_ray.tools.cache import key_of
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.guard import Trace
from mmsr_ray.tools.http import public
from mmsr_ray.tools.parts import SPARES, Parts, fill
from mmsr_ray.tools.providers.base import Lead, Page
from mmsr_ray.types import TextHit, ToolFailure


class TextTool:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def search(self, query: str, question: str, trace: Trace) -> list[TextHit]:
        """Raises ProviderError when there is no hit. Summaries are written for the user's `question`."""
        provider, limit = self._parts.providers.text_search, SPARES * self._parts.topk

        async def ask() -> list[Lead]:
            return await self._parts.guards["text_search"].call(trace, lambda: provider.search(query, limit))

        leads = await self._parts.leads("query", key_of(provider.identity, str(limit), query), ask, trace)
        return await fill(leads, self._parts.topk, lambda lead: self._hit(lead, question, trace), trace)

    async def _hit(self, lead: Lead, question: str, trace: Trace) -> TextHit:
        page = await self._page(lead.url, trace)
        summariser = self._parts.providers.summariser

        async def produce() -> bytes:
            summary = await self._parts.guards["summariser"].call(trace, lambda: summariser.summarise(page.text, question))
            return summary.text.encode()

        summary = await self._parts.cache.get("summary", key_of(summariser.identity, page.text, question), produce, trace.deadline)
        return TextHit(lead.url, summary.decode(), lead.title or page.title)

    async def read(self, url: str, trace: Trace) -> list[TextHit]:
        """One hit: a page with its whole text for a summary. Raises ProviderError."""
        page = await self._page(url, trace)
        return [TextHit(url, page.text, page.title)]

    async def _page(self, url: str, trace: Trace) -> Page:
        async def produce() -> bytes:
            page = await self._parts.guards["reader"].call(trace, lambda: self._parts.providers.reader.read(url))
            text = foreign.clean_text(page.text, self._parts.config.page_chars)
            if not text:
                raise ProviderError(ToolFailure.NO_RESULTS, f"{public(url)}: the page has no text")
            return json.dumps([page.title, text]).encode()

        key = key_of(self._parts.providers.reader.identity, str(self._parts.config.page_chars), url)
        title, text = json.loads(await self._parts.cache.get("page", key, produce, trace.deadline))
        return Page(title, text)
