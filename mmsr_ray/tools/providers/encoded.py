"""Encoded pictures by their first bytes: what they are, and how a Lead carries one that lies on no server."""

from __future__ import annotations

import base64
import io

from PIL import Image

from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.types import ToolFailure

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def media_type(data: bytes) -> str:
    """Such as image/png, by the header alone. Raises ProviderError (REJECTED) when the bytes are no picture."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            return Image.MIME[picture.format or ""]
    except Exception as error:  # a foreign decoder on foreign bytes: on garbage Pillow raises almost anything
        raise ProviderError(ToolFailure.REJECTED, f"{len(data)} bytes are no picture ({type(error).__name__})") from None


def inline(data: bytes) -> str:
    """The data: URL of a picture. Raises ProviderError as `media_type` does."""
    return f"data:{media_type(data)};base64,{base64.b64encode(data).decode()}"
