"""Pictures of episodes for pages: known formats only, never larger than they are shown. Pure.

Promise: what goes out is a PNG, JPEG, WebP or GIF by its own header, whatever the data set or the web called it.
"""

from __future__ import annotations

import base64
import io

from PIL import Image

FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
SIDE = 320  # pixels of a picture's longer side
MOST_BYTES = 300_000  # of a file that passes unread


def shown(picture: bytes | None, side: int = SIDE) -> tuple[bytes, str] | None:
    """(bytes, media type) of a picture scaled down to `side` pixels; None for what is no picture (None, corrupt, unknown, a bomb)."""
    if not picture:
        return None
    try:
        with Image.open(io.BytesIO(picture), formats=list(FORMATS)) as image:
            kind = str(image.format)
            if max(image.size) <= side and len(picture) <= MOST_BYTES:
                return picture, FORMATS[kind]
            kind = "PNG" if kind in ("PNG", "GIF") else "JPEG"
            image.thumbnail((side, side))
            out = io.BytesIO()
            image.convert("RGB").save(out, format=kind)
            return out.getvalue(), FORMATS[kind]
    except (OSError, ValueError, Image.DecompressionBombError):  # foreign bytes; the page says that the picture is missing
        return None


def data_uri(picture: bytes | None, side: int = SIDE) -> str | None:
    """The picture inside the page itself."""
    found = shown(picture, side)
    return None if found is None else f"data:{found[1]};base64,{base64.b64encode(found[0]).decode()}"
