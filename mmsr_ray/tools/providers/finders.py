"""Searches for pictures by words: SerpAPI and Serper, Google Images. Used to build data sets, not by the agent.

Promise: finds in the service's order of relevance, each with the addresses of a picture and of the page that shows it; text is cleaned and
capped. Licence and source are what the service tells, "" where it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.foreign import TITLE_CHARS, clean_line, web_url
from mmsr_ray.tools.providers.base import Provider, rows
from mmsr_ray.tools.providers.search import SerpApi, Serper
from mmsr_ray.types import ToolFailure


@dataclass(frozen=True, slots=True)
class Find:
    """A picture of the web before it is fetched."""

    title: str
    picture_url: str
    page_url: str
    source: str = ""  # who shows it
    licence: str = ""  # an address where the licence is explained, or who has the rights


class SerpApiImages(SerpApi):
    """`images_results[]` of engine google_images: `original` is the picture, `link` its page (https://serpapi.com/google-images-api)."""

    async def find(self, query: str) -> list[Find]:
        answer = await self._get({"engine": "google_images", "q": query})
        found = rows(answer, "images_results", "SerpAPI", expected="search_metadata" not in answer)
        return [find for row in found if (find := _find(row, "original", "license_details_url"))]


class SerperImages(Serper):
    """POST /images, `images[]`: `imageUrl` is the picture, `link` its page, `source` who shows it. This follows answers of the
    service that its users published. Rights stand in few rows, as `copyright`, `credit` or `creator`; there is no
    address of a licence.
    """

    async def find(self, query: str) -> list[Find]:
        answer = await self._post("images", {"q": query})
        found = rows(answer, "images", "Serper", expected="searchParameters" not in answer)
        return [find for row in found if (find := _find(row, "imageUrl", "copyright", "credit", "creator"))]


class NoFinder(Provider):
    """Nothing but the building of data sets looks for pictures."""

    needs_url = False
    remote = False
    key_required = False

    async def find(self, query: str) -> list[Find]:
        raise ProviderError(ToolFailure.REJECTED, "nobody finds pictures by words: set tools.picture_finder.kind", retry=False)


def _find(row: dict[str, Any], picture: str, *rights: str) -> Find | None:
    """None for a row without both addresses. The first of `rights` that is there is told."""
    addresses = web_url(row.get(picture)), web_url(row.get("link"))
    if not all(addresses):
        return None
    return Find(
        clean_line(row.get("title"), TITLE_CHARS),
        *addresses,
        clean_line(row.get("source"), TITLE_CHARS),
        next(filter(None, (clean_line(row.get(name), TITLE_CHARS) for name in rights)), ""),
    )
