"""Image search: a picture in, titles and thumbnails of pages that show something alike out. Spec §2.2.

Promise: hits in the provider's order, each with a title and a thumbnail that decodes; a thumbnail that fails is replaced
by the next match until `topk` are there, the list or the time ends. Looked up once per picture, whoever asks.
"""

from __future__ import annotations

import asyncio
import hashlib

from mmsr_ray.tools import foreign
from mmsr_ray.tools.cache import key_of
from mmsr_ray.tools.guard import Trace
from mmsr_ray.tools.parts import SPARES, Parts, fill
from mmsr_ray.tools.providers import THUMBNAILS
from mmsr_ray.tools.providers.base import Lead, Photo
from mmsr_ray.types import ImageHit, Picture

_INLINE_BYTES, _INLINE_PIXELS = 100_000, 100_000  # a bigger thumbnail is decoded on a thread
_DECODERS = 4  # threads at most: one large picture may need 150 MB
_PICTURES = ("image/", "application/octet-stream", "binary/octet-stream")  # content types; the bytes are checked by decoding


class ImageTool:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._decoders = asyncio.Semaphore(_DECODERS)

    async def search(self, sha: str, data: bytes, url: str | None, trace: Trace) -> list[ImageHit]:
        """Raises ProviderError when there is no hit. `sha` is the hex sha256 of `data`, `url` the sample's own address of it."""
        leads = await self._leads(sha, url, data, trace)
        return await fill(leads, self._parts.topk, lambda lead: self._hit(lead, trace), trace.deadline)

    async def _leads(self, sha: str, url: str | None, data: bytes, trace: Trace) -> list[Lead]:
        provider, limit = self._parts.providers.image_search, SPARES * self._parts.topk

        async def search() -> list[Lead]:
            public = (foreign.web_url(url) or await self._upload(sha, data, trace)) if provider.wants_photo_url else ""
            leads = await self._parts.guards["image_search"].call(trace, lambda: provider.search(Photo(sha, data, public)))
            return [lead for lead in leads if lead.title and lead.thumbnail][:limit]

        return await self._parts.leads("image", key_of(provider.identity, str(limit), sha), search, trace)

    async def _upload(self, sha: str, data: bytes, trace: Trace) -> str:
        host = self._parts.providers.image_host

        async def produce() -> bytes:
            return (await self._parts.guards["image_host"].call(trace, lambda: host.upload(data))).encode()

        return (await self._parts.cache.get("upload", key_of(host.identity, sha), produce, trace.deadline)).decode()

    async def _hit(self, lead: Lead, trace: Trace) -> ImageHit:
        async def produce() -> bytes:
            if lead.thumbnail.startswith("data:"):
                data = foreign.data_url(lead.thumbnail, self._parts.config.thumbnail_bytes)
            else:
                data = await self._parts.guards[THUMBNAILS].call(trace, lambda: self._thumbnail(lead.thumbnail))
            return await self._bounded(data)

        data = await self._parts.cache.get(
            "thumbnail", key_of(lead.thumbnail, str(self._parts.config.thumbnail_pixels)), produce, trace.deadline
        )
        return ImageHit(lead.title, Picture(data, hashlib.sha256(data).hexdigest()), lead.url)

    async def _bounded(self, data: bytes) -> bytes:
        """The thumbnail, harmless and within the pixel budget."""
        budget = self._parts.config.thumbnail_pixels
        if len(data) < _INLINE_BYTES and foreign.declared_pixels(data) <= _INLINE_PIXELS:
            return foreign.thumbnail(data, budget)
        async with self._decoders:
            return await asyncio.to_thread(foreign.thumbnail, data, budget)

    async def _thumbnail(self, url: str) -> bytes:
        timeout, limit = self._parts.config.image_search.timeout_seconds, self._parts.config.thumbnail_bytes
        return (await self._parts.http.fetch(url, timeout=timeout, limit=limit, types=_PICTURES)).body
