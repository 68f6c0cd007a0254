"""Image search: a picture in, titles and thumbnails of pages that show something alike out. Spec §2.2.

Promise: hits in the provider's order, each with a title and a thumbnail that decodes; a thumbnail that fails is replaced
by the next match until `topk` are there, the list or the time ends. Looked up once per picture, whoever asks. A service
that fetches the picture itself is given the sample's own address first, and an uploaded copy's where that leads nowhere.
"""

from __future__ import annotations

import asyncio
import hashlib

from mmsr_ray.tools import foreign
from mmsr_ray.tools.cache import key_of
from mmsr_ray.tools.errors import AccountError, ProviderError
from mmsr_ray.tools.guard import Trace
from mmsr_ray.tools.parts import SPARES, Parts, fill
from mmsr_ray.tools.providers import THUMBNAILS
from mmsr_ray.tools.providers.base import Lead, Photo
from mmsr_ray.types import ImageHit, Picture, ToolFailure

_INLINE_BYTES, _INLINE_PIXELS = 100_000, 100_000  # a bigger thumbnail is decoded on a thread
_DECODERS = 2  # threads at most: a picture of 16 megapixels takes a second and 300 MB
_PICTURES = ("image/", "application/octet-stream", "binary/octet-stream")  # content types; the bytes are checked by decoding
_DIGEST_BYTES = 32  # of a sha256


class ImageTool:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._decoders = asyncio.Semaphore(_DECODERS)

    async def search(self, sha: str, data: bytes, url: str | None, trace: Trace) -> list[ImageHit]:
        """Raises ProviderError when there is no hit. `sha` is the hex sha256 of `data`, `url` the sample's own address of it."""
        leads = await self._leads(sha, url, data, trace)
        return await fill(leads, self._parts.topk, lambda lead: self._hit(lead, trace), trace)

    async def _leads(self, sha: str, url: str | None, data: bytes, trace: Trace) -> list[Lead]:
        provider, limit = self._parts.providers.image_search, SPARES * self._parts.topk

        async def ask(address: str) -> list[Lead]:
            found = await self._parts.guards["image_search"].call(trace, lambda: provider.search(Photo(sha, data, address)))
            return [lead for lead in found if lead.title and lead.thumbnail][:limit]

        async def search() -> list[Lead]:
            if not provider.wants_photo_url:
                return await ask("")
            own, uploads = foreign.web_url(url), bool(data) and self._parts.config.image_host.kind != "none"
            if own:
                try:
                    if (leads := await ask(own)) or not uploads:
                        return leads
                except ProviderError as error:
                    if not uploads or not _address_may_be_dead(error):
                        raise
            return await ask(await self._upload(sha, data, trace))

        return await self._parts.leads("image", key_of(provider.identity, str(limit), sha), search, trace)

    async def _upload(self, sha: str, data: bytes, trace: Trace) -> str:
        host = self._parts.providers.image_host

        async def produce() -> bytes:
            return (await self._parts.guards["image_host"].call(trace, lambda: host.upload(data))).encode()

        keep = None if host.lasts is None else host.lasts / 2  # an address that opens the picture is kept while it surely works
        key = key_of(host.identity, sha)
        return (await self._parts.cache.get("upload", key, produce, trace.deadline, keep_seconds=keep)).decode()

    async def _hit(self, lead: Lead, trace: Trace) -> ImageHit:
        async def produce() -> bytes:
            if lead.thumbnail.startswith("data:"):
                data = foreign.data_url(lead.thumbnail, self._parts.config.thumbnail_bytes)
            else:
                data = await self._parts.guards[THUMBNAILS].call(trace, lambda: self._thumbnail(lead.thumbnail))
            bounded = await self._bounded(data)
            return hashlib.sha256(bounded).digest() + bounded  # decoded, scaled and hashed once for all that see it

        key = key_of(lead.thumbnail, str(self._parts.config.thumbnail_pixels))
        kept = await self._parts.cache.get("thumbnail", key, produce, trace.deadline)
        return ImageHit(lead.title, Picture(kept[_DIGEST_BYTES:], kept[:_DIGEST_BYTES].hex()), lead.url)

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


def _address_may_be_dead(error: ProviderError) -> bool:
    """Whether another address of the same picture may fare better: nothing was found, or this address was refused."""
    refused = error.failure is ToolFailure.REJECTED and not isinstance(error, AccountError)
    return refused or error.failure is ToolFailure.NO_RESULTS
