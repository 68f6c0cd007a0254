"""Page readers: a URL in, plain text out. Jina Reader (spec §2.3) or trafilatura in this process.

Promise: a page that cannot be read for a reason of its own (gone, forbidden, empty, not text, too slow to extract) is
NO_RESULTS, so that the next URL takes its place; anything else is the reader's failure. Only http(s) URLs are asked for.
"""

from __future__ import annotations

import re
from typing import Any

from yarl import URL

from mmsr_ray.config import ProviderConfig
from mmsr_ray.tools.errors import AccountError, ProviderError
from mmsr_ray.tools.foreign import TITLE_CHARS, clean_line
from mmsr_ray.tools.http import PAGE_BYTES, Http, public
from mmsr_ray.tools.providers.base import Page, Provider, Usage
from mmsr_ray.tools.providers.decoding import decode
from mmsr_ray.tools.providers.extraction import HTML_CHARS, Extractor
from mmsr_ray.types import ToolFailure

_PAGE_REFUSED = re.compile(r"OperationNotAllowed|SecurityCompromise")  # Jina's names for a page that it will not open
_MAX_TOKENS = 40_000  # of a page that are sent and billed; more than the characters that are kept, in any script
_PAGE_FAILED = re.compile(r"Target URL returned error [45]\d\d")


class JinaReader(Provider):
    """GET <url><page URL>, JSON {"data": {"title", "content", "warning", "usage": {"tokens"}}} (https://r.jina.ai/docs).

    A key only raises the rate limit. The tokens that Jina bills, those of the text it returns, are the page's output tokens.
    """

    default_url = "https://r.jina.ai/"
    default_key_env = "JINA_API_KEY"
    key_required = False

    def __init__(self, config: ProviderConfig, http: Http, key: str) -> None:
        super().__init__(config, http, key)
        self.identity += "|text"
        # Pictures and link addresses would fill the characters that are kept, and are billed.
        self._headers = {"X-Retain-Images": "none", "X-Retain-Links": "text"}
        self._headers["X-Max-Tokens"] = str(_MAX_TOKENS)
        if 2 <= config.timeout_seconds <= 20:  # so that Jina ends before we do and says what it has; above, its own 30 s hold
            self._headers["X-Timeout"] = str(int(config.timeout_seconds) - 1)
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    async def probe(self, timeout: float) -> str:
        """By GET of the service's own root, which is free and greets the owner of the key."""
        if not self._key:
            return await super().probe(timeout)
        root = URL(self.config.url).origin() / ""
        return (await self._probe_key(root, timeout, headers={"Authorization": f"Bearer {self._key}"}))[0]

    async def read(self, url: str) -> Page:
        if why := self.http.refusal(url):
            raise ProviderError(ToolFailure.NO_RESULTS, f"{public(url)}: {why}")
        target = URL(self.config.url + str(URL(url)), encoded=True)
        try:
            answer = await self.http.json("GET", target, headers=self._headers, timeout=self.config.timeout_seconds)
        except ProviderError as error:
            raise self._refusal(error) from None
        data = answer.get("data")
        if not isinstance(data, dict) or not isinstance(data.get("content"), str):
            raise ProviderError(ToolFailure.BAD_RESPONSE, f"reader {public(self.config.url)}: no data.content in the answer")
        warning = data.get("warning")
        if isinstance(warning, str) and _PAGE_FAILED.search(warning):  # Jina reads error pages too, and says so
            raise ProviderError(ToolFailure.NO_RESULTS, f"{public(url)}: {clean_line(warning, 100)}")
        return _page(data.get("title"), data["content"], url, _usage(data.get("usage")))

    def _refusal(self, error: ProviderError) -> ProviderError:
        """401: the key; 402: the balance; 403: the key or the page; any other 4xx: the page."""
        if error.status == 402:
            return AccountError(f"the Jina account has no balance left: top it up or name another key ({error.detail})", status=402)
        if error.status in (401, 403) and not _PAGE_REFUSED.search(error.detail):
            name = self.config.key_env or "the variable that tools.reader.key_env is to name"
            return AccountError(f"Jina refuses the key: correct {name} ({error.detail})", status=error.status)
        if error.failure is ToolFailure.REJECTED:
            return ProviderError(ToolFailure.NO_RESULTS, error.detail, status=error.status)
        return error


class TrafilaturaReader(Provider):
    """Fetches the page itself and extracts the main text on a thread. Needs no service."""

    needs_url = False
    key_required = False
    many_hosts = True

    def __init__(self, config: ProviderConfig, http: Http, key: str) -> None:
        super().__init__(config, http, key)
        self.identity += f"|{HTML_CHARS}"
        self._extractor = Extractor()

    async def read(self, url: str) -> Page:
        try:
            reply = await self.http.fetch(url, timeout=self.config.timeout_seconds, limit=PAGE_BYTES, types=_READABLE)
        except ProviderError as error:
            if error.status:  # a web page that fails is that page's trouble; only "no answer at all" may be ours
                raise ProviderError(ToolFailure.NO_RESULTS, error.detail, status=error.status) from None
            raise
        if reply.content_type.startswith("text/plain"):
            return _page("", decode(reply.body, reply.charset), url)
        found = await self._extractor.extract(reply.body, reply.charset, url, self.config.timeout_seconds / 2)
        return _page(found.title, found.text, url)


_UNBILLED = Usage()
_READABLE = ("text/html", "application/xhtml+xml", "text/plain")


def _usage(value: object) -> Usage:
    tokens: Any = value.get("tokens") if isinstance(value, dict) else None
    return Usage(output_tokens=tokens) if isinstance(tokens, int) and tokens > 0 else Usage()


def _page(title: object, text: str, url: str, usage: Usage = _UNBILLED) -> Page:
    if not text.strip():
        raise ProviderError(ToolFailure.NO_RESULTS, f"{public(url)}: the page has no text")
    return Page(clean_line(title, TITLE_CHARS), text, usage)
