"""Page readers: a URL in, plain text out. Jina Reader (spec §2.3) or trafilatura in this process.

Promise: a page that cannot be read for a reason of its own (gone, forbidden, empty) is NO_RESULTS, so that the next
URL takes its place; anything else is the reader's failure. Only http(s) URLs are asked for.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from yarl import URL

from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.foreign import TITLE_CHARS, clean_line
from mmsr_ray.tools.http import PAGE_BYTES, public
from mmsr_ray.tools.providers.base import Page, Provider
from mmsr_ray.types import ToolFailure

_KEY_TROUBLE = (401, 402, 403)  # of the reader itself, not of the page


class JinaReader(Provider):
    """GET <url><page URL>, JSON {"data": {"title", "content"}}. A key only raises the rate limit."""

    default_url = "https://r.jina.ai/"
    default_key_env = "JINA_API_KEY"
    key_required = False

    async def read(self, url: str) -> Page:
        if why := self.http.refusal(url):
            raise ProviderError(ToolFailure.NO_RESULTS, f"{public(url)}: {why}")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        target = URL(self.config.url + str(URL(url)), encoded=True)
        try:
            answer = await self.http.json("GET", target, headers=headers, timeout=self.config.timeout_seconds)
        except ProviderError as error:
            if error.failure is ToolFailure.REJECTED and error.status not in _KEY_TROUBLE:
                raise ProviderError(ToolFailure.NO_RESULTS, error.detail) from None
            raise
        data = answer.get("data")
        if not isinstance(data, dict) or not isinstance(data.get("content"), str):
            raise ProviderError(ToolFailure.BAD_RESPONSE, f"reader {public(self.config.url)}: no data.content in the answer")
        return _page(data.get("title"), data["content"], url)


class TrafilaturaReader(Provider):
    """Fetches the page itself and extracts the main text on a thread. Needs no service."""

    needs_url = False
    key_required = False

    async def read(self, url: str) -> Page:
        try:
            reply = await self.http.fetch(url, timeout=self.config.timeout_seconds, limit=PAGE_BYTES)
        except ProviderError as error:
            # a web page that fails is that page's trouble, whatever the status; only "no answer at all" may be ours
            if error.status or error.failure in (ToolFailure.REJECTED, ToolFailure.BAD_RESPONSE):
                raise ProviderError(ToolFailure.NO_RESULTS, error.detail) from None
            raise
        if reply.content_type.startswith("text/plain"):
            return _page("", reply.text, url)
        if "html" not in reply.content_type:
            raise ProviderError(ToolFailure.NO_RESULTS, f"{public(url)}: {clean_line(reply.content_type, 60)} is no page to read")
        return await asyncio.to_thread(_extract, reply.text, url)


def _extract(html: str, url: str) -> Page:
    trafilatura: Any = importlib.import_module("trafilatura")  # slow to import, and only this reader wants it
    found = trafilatura.bare_extraction(html, url=url, with_metadata=True, include_comments=False)
    if found is None:
        raise ProviderError(ToolFailure.NO_RESULTS, f"{public(url)}: no text found in the page")
    return _page(found.title, found.text or "", url)


def _page(title: object, text: str, url: str) -> Page:
    if not text.strip():
        raise ProviderError(ToolFailure.NO_RESULTS, f"{public(url)}: the page has no text")
    return Page(clean_line(title, TITLE_CHARS), text)
