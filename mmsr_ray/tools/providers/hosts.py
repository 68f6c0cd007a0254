"""Image hosts: where a picture without a usable URL goes, because reverse image search wants one.

Promise: only bytes that begin as a picture are uploaded, and the URL that comes back is http(s). Where `lasts` is set,
the URL opens the picture for that many seconds without any key: it is a secret, kept no longer than it lives.
"""

from __future__ import annotations

from typing import ClassVar

from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.foreign import web_url
from mmsr_ray.tools.http import public
from mmsr_ray.tools.providers.base import Provider
from mmsr_ray.tools.providers.encoded import media_type
from mmsr_ray.types import ToolFailure


class UploadHost(Provider):
    """POST of the raw bytes, JSON {"url": ...}."""

    lasts: ClassVar[float | None] = None

    async def upload(self, data: bytes) -> str:
        media_type(data)
        headers = {"Content-Type": "application/octet-stream", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        answer = await self.http.json("POST", self.config.url, headers=headers, body=data, timeout=self.config.timeout_seconds)
        url = web_url(answer.get("url"))
        if not url:
            raise ProviderError(ToolFailure.BAD_RESPONSE, f"image host {public(self.config.url)}: no http(s) 'url' in the answer")
        return url


class NoHost(Provider):
    """For data sets that bring image URLs."""

    needs_url = False
    remote = False
    key_required = False
    lasts: ClassVar[float | None] = None

    async def upload(self, data: bytes) -> str:
        raise ProviderError(
            ToolFailure.REJECTED, "the sample has no image URL: set tools.image_host.kind to upload (with its url) or to s3"
        )
