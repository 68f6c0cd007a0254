"""Pictures by words: a name in, pictures of the web with the pages that show them out. Used to build data sets, not by the agent.

Promise: hits in the provider's order, each with a picture that decodes and has at most `tools.picture_pixels` pixels; one that fails is
replaced by the next until as many as wanted are there, the list or the time ends. Searched once per name, fetched once per address.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import astuple

from mmsr_ray.tools import foreign
from mmsr_ray.tools.cache import key_of
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.guard import Trace
from mmsr_ray.tools.parts import Parts, fill
from mmsr_ray.tools.providers import THUMBNAILS
from mmsr_ray.tools.providers.finders import Find
from mmsr_ray.types import FoundPicture, Picture, ToolFailure

_DECODERS = 2  # threads at most
_MOST = 20  # finds that are kept of one search
_PICTURES = ("image/", "application/octet-stream", "binary/octet-stream")  # content types; the bytes are checked by decoding


class FinderTool:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._decoders = asyncio.Semaphore(_DECODERS)

    async def find(self, query: str, wanted: int, trace: Trace) -> list[FoundPicture]:
        """At most `wanted` hits. Raises ProviderError when there is none."""
        return await fill(await self._finds(query, trace), wanted, lambda find: self._hit(find, trace), trace)

    async def _finds(self, query: str, trace: Trace) -> list[Find]:
        provider = self._parts.providers.picture_finder

        async def produce() -> bytes:
            found = await self._parts.guards["picture_finder"].call(trace, lambda: provider.find(query))
            if not found:
                raise ProviderError(ToolFailure.NO_RESULTS, "nothing found")
            return json.dumps([astuple(find) for find in found[:_MOST]]).encode()

        kept = await self._parts.cache.get("finds", key_of(provider.identity, query), produce, trace.deadline)
        return [Find(*fields) for fields in json.loads(kept)]

    async def _hit(self, find: Find, trace: Trace) -> FoundPicture:
        async def produce() -> bytes:
            data = await self._parts.guards[THUMBNAILS].call(trace, lambda: self._fetch(find.picture_url))
            async with self._decoders:
                return await asyncio.to_thread(foreign.thumbnail, data, self._parts.config.picture_pixels)

        key = key_of(find.picture_url, str(self._parts.config.picture_pixels))
        data = await self._parts.cache.get("picture", key, produce, trace.deadline)
        picture = Picture(data, hashlib.sha256(data).hexdigest())
        return FoundPicture(find.title, picture, find.page_url, find.picture_url, find.source, find.licence)

    async def _fetch(self, url: str) -> bytes:
        config = self._parts.config
        return (
            await self._parts.http.fetch(url, timeout=config.picture_finder.timeout_seconds, limit=config.picture_bytes, types=_PICTURES)
        ).body
