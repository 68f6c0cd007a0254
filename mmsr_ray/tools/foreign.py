"""Foreign text and pictures, made harmless: everything that comes from the web passes through here.

Promise: what leaves has no control, format or surrogate characters and is no longer than asked; a picture that leaves
decodes, is of a common format and of bounded size. Neutralising the agent's own tags is the agent's affair.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings

from PIL import Image

from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.types import ToolFailure

TITLE_CHARS = 300
URL_CHARS = 2_000
SUMMARY_CHARS = 4_000
THUMBNAIL_PIXELS = 16_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

# Control characters but newline and tab, zero-width and bidirectional marks, surrogates, private use, tag characters.
_UNWANTED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ue000-\uf8ff\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"
)
_LINES = re.compile(r"\n\s*\n\s*\n+")


def clean_line(text: object, limit: int) -> str:
    """One line of plain text of at most `limit` characters; "" when `text` is not a string."""
    return " ".join(_UNWANTED.sub(" ", text[: 4 * limit]).split())[:limit].rstrip() if isinstance(text, str) else ""


def clean_text(text: object, limit: int) -> str:
    """Plain text with its lines kept, at most `limit` characters; "" when `text` is not a string."""
    if not isinstance(text, str):
        return ""
    return _LINES.sub("\n\n", _UNWANTED.sub("", text[: 2 * limit].replace("\r\n", "\n"))).strip()[:limit].rstrip()


def web_url(url: object) -> str:
    """The URL when it is a plausible http(s) one, else ""."""
    if not isinstance(url, str) or len(url) > URL_CHARS or not url.startswith(("http://", "https://")):
        return ""
    return "" if _UNWANTED.search(url) or any(c.isspace() for c in url) else url


def data_url(url: str, limit: int) -> bytes:
    """Bytes of a base64 `data:` URL. Raises ProviderError when it is malformed or longer than `limit` bytes."""
    head, _, body = url.partition(",")
    if not head.endswith(";base64") or len(body) > limit * 4 // 3 + 4:
        raise ProviderError(ToolFailure.NO_RESULTS, "thumbnail data URL is not base64 or too long")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ProviderError(ToolFailure.NO_RESULTS, "thumbnail data URL does not decode") from None


def check_picture(data: bytes) -> None:
    """Decode the picture completely. Raises ProviderError (NO_RESULTS: this hit has no usable thumbnail)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > THUMBNAIL_PIXELS:
                    raise ProviderError(ToolFailure.NO_RESULTS, f"thumbnail of {image.width}x{image.height} pixels")
                image.load()
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ProviderError(ToolFailure.NO_RESULTS, f"thumbnail does not decode ({type(error).__name__})") from None
