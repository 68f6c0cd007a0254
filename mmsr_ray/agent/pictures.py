"""Pictures as the model sees them: RGB, sides multiples of patch x merge, area within limits, PNG.

Promise: what comes out is never resized again by anybody: its grid is final, and the hash of its bytes is its identity
in every cache. Bytes from outside are checked before they are decoded; all that is wrong with them is a `PictureError`.
"""

from __future__ import annotations

import hashlib
import io
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass

from PIL import Image

from mmsr_ray.agent.pieces import PictureError, SizedPicture
from mmsr_ray.types import Picture

MAX_ASPECT = 200  # Qwen2.5-VL's own bound
_CACHED_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """Bounds on what is accepted (encoded bytes, decoded pixels)."""

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000


@dataclass(frozen=True, slots=True)
class Geometry:
    """The vision tower's: side of a patch in pixels, and patches merged per side into one token."""

    patch: int
    merge: int

    @property
    def factor(self) -> int:
        """Sides of a picture are multiples of this many pixels."""
        return self.patch * self.merge

    def tokens(self, grid: tuple[int, int, int]) -> int:
        """Image tokens of a (t, h, w) grid."""
        return math.prod(grid) // self.merge**2


def fit(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Nearest (height, width) in multiples of `factor` with the area in bounds and the aspect ratio kept as well as can be.

    Agrees with Qwen2.5-VL's own rule (tested against it). Raises PictureError beyond an aspect ratio of 200.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise PictureError(f"the picture is {width}x{height}: one side may be at most {MAX_ASPECT} times the other")
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def prepare(data: bytes, geometry: Geometry, min_pixels: int, max_pixels: int, limits: PictureLimits) -> SizedPicture:
    """Decode, convert to RGB, resize (bicubic) and encode as PNG. Raises PictureError."""
    image = _decode(data, limits)
    rows, columns = fit(image.height, image.width, geometry.factor, min_pixels, max_pixels)
    if (columns, rows) != image.size:
        image = image.resize((columns, rows), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    png = buffer.getvalue()
    grid = (1, rows // geometry.patch, columns // geometry.patch)
    return SizedPicture(Picture(png, hashlib.sha256(png).hexdigest()), grid)


class Pictures:
    """Pictures within a model's limits of size, the latest of them kept. Areas in pixels. May be used from several threads."""

    def __init__(self, geometry: Geometry, *, min_pixels: int, max_pixels: int, thumbnail_max_pixels: int, limits: PictureLimits) -> None:
        self.geometry = geometry
        self._min, self._max, self._thumbnail_max, self._limits = min_pixels, max_pixels, thumbnail_max_pixels, limits
        self._kept: OrderedDict[tuple[str, str], SizedPicture] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def user_picture(self, data: bytes) -> SizedPicture:
        """The user's picture within the model's pixel limits. Raises PictureError."""
        return self._prepared(data, "user", self._min, self._max)

    def thumbnail(self, data: bytes) -> SizedPicture:
        """A search result's picture; small ones stay small. Raises PictureError."""
        return self._prepared(data, "thumbnail", self.geometry.factor**2, self._thumbnail_max)

    def _prepared(self, data: bytes, kind: str, min_pixels: int, max_pixels: int) -> SizedPicture:
        key = (kind, hashlib.sha256(data).hexdigest())
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        found = prepare(data, self.geometry, min_pixels, max_pixels, self._limits)
        with self._lock:
            if key in self._kept:  # another thread was faster
                return self._kept[key]
            self._kept[key] = found
            self._kept_bytes += len(found.picture.data)
            while self._kept_bytes > _CACHED_BYTES:
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= len(oldest.picture.data)
        return found


def _decode(data: bytes, limits: PictureLimits) -> Image.Image:
    if not data:
        raise PictureError("the picture is empty")
    if len(data) > limits.max_bytes:
        raise PictureError(f"the picture has {len(data)} bytes: at most {limits.max_bytes} are accepted")
    try:
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        if width * height > limits.max_pixels:
            raise PictureError(f"the picture is {width}x{height}: at most {limits.max_pixels} pixels are accepted")
        return _rgb(image)
    except PictureError:
        raise
    except Exception as error:  # decoders raise anything from OSError to IndexError on corrupt bytes
        raise PictureError(f"the picture cannot be read ({error})") from error


def _rgb(image: Image.Image) -> Image.Image:
    """RGB, transparency over white: what a person would see."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
