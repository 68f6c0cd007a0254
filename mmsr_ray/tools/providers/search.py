"""Search services: SerpAPI (Google Lens and Google), Serper (both), SearXNG (text). Spec §2.3.

Promise: leads in the service's order of relevance, text cleaned and capped, only http(s) URLs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from yarl import URL

from mmsr_ray.config import ProviderConfig
from mmsr_ray.tools.errors import AccountError, ProviderError
from mmsr_ray.tools.foreign import TITLE_CHARS, clean_line, web_url
from mmsr_ray.tools.providers.base import Lead, Photo, Provider, rows
from mmsr_ray.types import ToolFailure

logger = logging.getLogger(__name__)

FEW_SEARCHES = 100  # a key with fewer is worth a warning before a run


class SerpApi(Provider):
    default_url = "https://serpapi.com/search.json"
    default_key_env = "SERPAPI_API_KEY"

    async def probe(self, timeout: float) -> str:
        """By GET /account.json beside the search, which is free."""
        if not self._key:
            return await super().probe(timeout)
        account = URL(self.config.url).join(URL("account.json"))
        trouble, answer = await self._probe_key(account, timeout, params={"api_key": self._key})
        _warn_when_few("SerpAPI", answer.get("total_searches_left"))
        return trouble

    async def _get(self, params: dict[str, str]) -> dict[str, Any]:
        if self._key:
            params = params | {"api_key": self._key}
        try:
            answer = await self.http.json("GET", self.config.url, params=params, timeout=self.config.timeout_seconds)
        except ProviderError as refusal:
            raise _account(refusal, "SerpAPI", self.config) from None
        error = answer.get("error")
        if isinstance(error, str) and error:
            # SerpAPI reports an empty result page as an error of a successful search
            failure = ToolFailure.NO_RESULTS if "any results" in error else ToolFailure.UNAVAILABLE
            raise _account(ProviderError(failure, f"SerpAPI says: {clean_line(self.http.redact(error), 200)}"), "SerpAPI", self.config)
        return answer


class SerpApiLens(SerpApi):
    """`visual_matches[]` of engine google_lens."""

    wants_photo_url = True

    async def search(self, photo: Photo) -> list[Lead]:
        answer = await self._get({"engine": "google_lens", "url": photo.url})
        matches = rows(answer, "visual_matches", "SerpAPI", expected="search_metadata" not in answer)
        return [_visual(m.get("title"), m.get("link"), m.get("thumbnail")) for m in matches]


class SerpApiGoogle(SerpApi):
    """`organic_results[]` of engine google: about ten, the first page, one paid search. Google no longer heeds `num`."""

    async def search(self, query: str, limit: int) -> list[Lead]:
        answer = await self._get({"engine": "google", "q": query})
        found = rows(answer, "organic_results", "SerpAPI", expected="search_metadata" not in answer)
        return _textual(((r.get("title"), r.get("link")) for r in found), limit)


class Serper(Provider):
    default_url = "https://google.serper.dev"
    default_key_env = "SERPER_API_KEY"

    async def probe(self, timeout: float) -> str:
        """By GET /account, which is free."""
        if not self._key:
            return await super().probe(timeout)
        trouble, answer = await self._probe_key(f"{self.config.url.rstrip('/')}/account", timeout, headers={"X-API-KEY": self._key})
        _warn_when_few("Serper", answer.get("balance"))
        return trouble

    async def _post(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        headers = {"X-API-KEY": self._key} if self._key else {}
        url, timeout = f"{self.config.url.rstrip('/')}/{path}", self.config.timeout_seconds
        try:
            return await self.http.json("POST", url, payload=payload, headers=headers, timeout=timeout)
        except ProviderError as refusal:
            raise _account(refusal, "Serper", self.config) from None


class SerperLens(Serper):
    """POST /lens, `organic[]` with thumbnailUrl. `url` is the service's root (https://google.serper.dev)."""

    wants_photo_url = True

    async def search(self, photo: Photo) -> list[Lead]:
        answer = await self._post("lens", {"url": photo.url})
        found = rows(answer, "organic", "Serper", expected="searchParameters" not in answer)
        return [_visual(r.get("title"), r.get("link"), r.get("thumbnailUrl") or r.get("imageUrl")) for r in found]


class SerperGoogle(Serper):
    """POST /search, `organic[]`, at most `num`."""

    async def search(self, query: str, limit: int) -> list[Lead]:
        answer = await self._post("search", {"q": query, "num": limit})
        found = rows(answer, "organic", "Serper", expected="searchParameters" not in answer)
        return _textual(((r.get("title"), r.get("link")) for r in found), limit)


class SearxNg(Provider):
    """GET /search?format=json, `results[]`. The instance must have the json format enabled.

    It asks other engines: when none of them answered, an empty list means trouble, not that there is nothing.
    """

    async def search(self, query: str, limit: int) -> list[Lead]:
        url, params = f"{self.config.url.rstrip('/')}/search", {"q": query, "format": "json"}
        try:
            answer = await self.http.json("GET", url, params=params, timeout=self.config.timeout_seconds)
        except ProviderError as error:
            if error.status == 403:
                raise AccountError(
                    f"SearXNG gives no JSON: add json to search.formats in its settings.yml ({error.detail})", status=403
                ) from None
            raise
        leads = _textual(((r.get("title"), r.get("url")) for r in rows(answer, "results", "SearXNG", expected=True)), limit)
        silent = answer.get("unresponsive_engines")
        if not leads and silent:
            raise ProviderError(ToolFailure.UNAVAILABLE, f"SearXNG: its engines do not answer: {clean_line(str(silent), 200)}")
        return leads


# SerpAPI says it with HTTP 429, Serper with 400; waiting helps with neither.
_SPENT = ("run out of searches", "searches for the month", "not enough credits")
_NO_KEY = (401, 403)


def _account(refusal: ProviderError, service: str, config: ProviderConfig) -> ProviderError:
    """The refusal itself, or the AccountError that it means, with what to do."""
    if any(words in refusal.detail.lower() for words in _SPENT):
        return AccountError(f"{service} has no searches left for this key: buy more or wait for the next period ({refusal.detail})")
    if refusal.status in _NO_KEY or "invalid api key" in refusal.detail.lower():
        where = f"the environment variable {config.key_env}" if config.key_env else "key_env, which names no variable"
        return AccountError(f"{service} refuses the key: correct {where} ({refusal.detail})", status=refusal.status)
    return refusal


def _warn_when_few(service: str, left: object) -> None:
    if isinstance(left, int | float) and left < FEW_SEARCHES:
        logger.warning("%s: the key has %d searches left", service, left)


def _visual(title: object, link: object, thumbnail: object) -> Lead:
    picture = thumbnail if isinstance(thumbnail, str) and thumbnail.startswith("data:image/") else web_url(thumbnail)
    return Lead(clean_line(title, TITLE_CHARS), web_url(link), picture)


def _textual(found: Iterable[tuple[object, object]], limit: int) -> list[Lead]:
    """The first `limit` leads with a URL; a page is named once, whichever part of it was found."""
    leads: dict[str, Lead] = {}
    for title, link in found:
        if url := web_url(link):
            leads.setdefault(url.partition("#")[0], Lead(clean_line(title, TITLE_CHARS), url))
    return list(leads.values())[:limit]
