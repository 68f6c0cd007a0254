"""Search services: SerpAPI (Google Lens and Google), Serper (both), SearXNG (text). Spec §2.3.

Promise: leads in the service's order of relevance, text cleaned and capped, only http(s) URLs.
"""

from __future__ import annotations

from typing import Any

from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.foreign import TITLE_CHARS, clean_line, web_url
from mmsr_ray.tools.providers.base import Lead, Photo, Provider, rows
from mmsr_ray.types import ToolFailure


class _SerpApi(Provider):
    default_url = "https://serpapi.com/search.json"
    default_key_env = "SERPAPI_API_KEY"

    async def _get(self, params: dict[str, str]) -> dict[str, Any]:
        if self._key:
            params = params | {"api_key": self._key}
        answer = await self.http.json("GET", self.config.url, params=params, timeout=self.config.timeout_seconds)
        error = answer.get("error")
        if isinstance(error, str) and error:
            # SerpAPI reports an empty result page as an error of a successful search
            failure = ToolFailure.NO_RESULTS if "any results" in error else ToolFailure.UNAVAILABLE
            raise ProviderError(failure, f"SerpAPI says: {clean_line(self.http.redact(error), 200)}")
        return answer


class SerpApiLens(_SerpApi):
    """`visual_matches[]` of engine google_lens."""

    wants_photo_url = True

    async def search(self, photo: Photo) -> list[Lead]:
        answer = await self._get({"engine": "google_lens", "url": photo.url})
        matches = rows(answer, "visual_matches", "SerpAPI", expected="search_metadata" not in answer)
        return [_visual(m.get("title"), m.get("link"), m.get("thumbnail")) for m in matches]


class SerpApiGoogle(_SerpApi):
    """`organic_results[]` of engine google."""

    async def search(self, query: str, limit: int) -> list[Lead]:
        answer = await self._get({"engine": "google", "q": query, "num": str(limit)})
        found = rows(answer, "organic_results", "SerpAPI", expected="search_metadata" not in answer)
        return _textual((r.get("title"), r.get("link")) for r in found)


class _Serper(Provider):
    default_url = "https://google.serper.dev"
    default_key_env = "SERPER_API_KEY"

    async def _post(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        headers = {"X-API-KEY": self._key} if self._key else {}
        return await self.http.json(
            "POST", f"{self.config.url.rstrip('/')}/{path}", payload=payload, headers=headers, timeout=self.config.timeout_seconds
        )


class SerperLens(_Serper):
    """POST /lens, `organic[]` with thumbnailUrl. `url` is the service's root (https://google.serper.dev)."""

    wants_photo_url = True

    async def search(self, photo: Photo) -> list[Lead]:
        answer = await self._post("lens", {"url": photo.url})
        found = rows(answer, "organic", "Serper", expected="searchParameters" not in answer)
        return [_visual(r.get("title"), r.get("link"), r.get("thumbnailUrl") or r.get("imageUrl")) for r in found]


class SerperGoogle(_Serper):
    """POST /search, `organic[]`."""

    async def search(self, query: str, limit: int) -> list[Lead]:
        answer = await self._post("search", {"q": query, "num": limit})
        found = rows(answer, "organic", "Serper", expected="searchParameters" not in answer)
        return _textual((r.get("title"), r.get("link")) for r in found)


class SearxNg(Provider):
    """GET /search?format=json, `results[]`. The instance must have the json format enabled."""

    async def search(self, query: str, limit: int) -> list[Lead]:
        params = {"q": query, "format": "json"}
        answer = await self.http.json("GET", f"{self.config.url.rstrip('/')}/search", params=params, timeout=self.config.timeout_seconds)
        return _textual((r.get("title"), r.get("url")) for r in rows(answer, "results", "SearXNG", expected=True))[:limit]


def _visual(title: object, link: object, thumbnail: object) -> Lead:
    picture = thumbnail if isinstance(thumbnail, str) and thumbnail.startswith("data:image/") else web_url(thumbnail)
    return Lead(clean_line(title, TITLE_CHARS), web_url(link), picture)


def _textual(found: Any) -> list[Lead]:
    """Leads with a URL, each URL once."""
    leads = {web_url(link): clean_line(title, TITLE_CHARS) for title, link in reversed(list(found))}
    return [Lead(title, url) for url, title in reversed(leads.items()) if url]
