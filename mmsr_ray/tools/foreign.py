"""Foreign text and pictures, made harmless: everything that comes from the web passes through here.

Promise: text that leaves has no markup and no control, format or surrogate characters, and is no longer than asked; a
URL that leaves is http(s) and cannot spell a tag; a picture that leaves decodes, is a still PNG or JPEG in RGB or grey,
upright, and of bounded size. Neutralising the agent's own tags in text is the agent's affair.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
from typing import Any

from PIL import Image
from yarl import URL

from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.types import ToolFailure

TITLE_CHARS = 300
URL_CHARS = 2_000
SUMMARY_CHARS = 4_000

DECLARED_PIXELS = 16_000_000  # a picture that says it has more is not decoded
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_STILL = ("PNG", "JPEG")
_LOSSLESS = ("PNG", "GIF", "BMP")
_LEAST_SIDE = 8
_MOST_ASPECT = 100
_MOST_SCANS = 32  # of a progressive JPEG; each one is a pass over the whole picture, and an empty one takes ten bytes

_ORIENTATION = 0x0112  # of EXIF: how to turn the picture so that it stands upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")  # all but tab and newline
# Format characters (zero width, bidirectional, tags), fillers, surrogates, private use, noncharacters, variation selectors
# beyond those of emoji.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufdd0-\ufdef\ufeff\uffa0"
    "\ufff0-\ufffb\ufffe\uffff\ud800-\udfff\ue000-\uf8ff\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U0010ffff]"
)
_SPACE = re.compile(r"\s")
_LINES = re.compile(r"\n\s*\n\s*\n+")
_MARKUP = re.compile(
    r"</?(?=[a-z])(?:a|abbr|article|aside|b|big|blockquote|body|br|button|center|cite|code|dd|del|div|dl|dt|em|embed|figcaption|figure|font|footer"
    r"|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|label|li|link|main|mark|meta|nav|noscript|object|ol|option|p|pre|s|script"
    r"|section|small|source|span|strong|style|sub|sup|svg|table|tbody|td|tfoot|th|thead|title|tr|tt|u|ul|video|wbr)\b[^<>]{0,300}>",
    re.IGNORECASE,
)
_URL_ESCAPES = re.compile(r'["<>\\^`{|}]')


def clean_line(text: object, limit: int) -> str:
    """One line of plain text of at most `limit` characters; "" when `text` is not a string."""
    return " ".join(_plain(text[: 4 * limit], " ").split())[:limit].rstrip() if isinstance(text, str) else ""


def clean_text(text: object, limit: int) -> str:
    """Plain text with its lines kept, at most `limit` characters; "" when `text` is not a string."""
    if not isinstance(text, str):
        return ""
    return _LINES.sub("\n\n", _plain(text[: 2 * limit].replace("\r\n", "\n"), "")).strip()[:limit].rstrip()


def _plain(text: str, control: str) -> str:
    if not (text.isascii() and text.isprintable()):  # most lines are
        text = _INVISIBLE.sub("", _CONTROL.sub(control, text))
    return _MARKUP.sub("", text) if "<" in text else text


def web_url(url: object) -> str:
    """The URL when it is a plausible http(s) one, else "". Characters that no URL has, such as <, are percent-encoded."""
    if not isinstance(url, str) or len(url) > URL_CHARS or not url.startswith(("http://", "https://")):
        return ""
    if _SPACE.search(url) or (not (url.isascii() and url.isprintable()) and (_CONTROL.search(url) or _INVISIBLE.search(url))):
        return ""
    escaped = _URL_ESCAPES.sub(lambda found: f"%{ord(found.group()):02X}", url)
    try:
        parsed = URL(escaped)
        plausible = bool(parsed.raw_host) and parsed.raw_user is None and parsed.raw_password is None and parsed.port != 0
    except ValueError:
        return ""
    return escaped if plausible and len(escaped) <= URL_CHARS else ""


def data_url(url: str, limit: int) -> bytes:
    """Bytes of a base64 `data:` URL. Raises ProviderError when it is malformed or longer than `limit` bytes."""
    head, _, body = url.partition(",")
    if not head.endswith(";base64") or len(body) > limit * 4 // 3 + 4:
        raise ProviderError(ToolFailure.NO_RESULTS, "thumbnail data URL is not base64 or too long")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ProviderError(ToolFailure.NO_RESULTS, "thumbnail data URL does not decode") from None


def declared_pixels(data: bytes) -> int:
    """Pixels that a picture says it has, read from its header; 0 when it is no picture."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return image.width * image.height
    except Exception:  # see `thumbnail`, which says what is wrong with it
        return 0


def thumbnail(data: bytes, pixels: int, declared: int = DECLARED_PIXELS) -> bytes:
    """A still RGB or grey PNG or JPEG of at most `pixels` pixels: the first frame, upright, over white, without metadata.

    A picture that is all of that already passes as it came, so that its hash stays. It is decoded completely in any case.
    Raises ProviderError (NO_RESULTS: this hit has no usable thumbnail). Takes up to two seconds: large ones belong on a
    thread (`declared_pixels`).
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_header(image, data, declared)
            if _fine(image, pixels):
                image.load()
                return data
            return _encoded(_shrunk(image, pixels), lossless=image.format in _LOSSLESS)
    except ProviderError:
        raise
    except Exception as error:  # decoders raise anything from OSError to IndexError on corrupt bytes
        raise ProviderError(ToolFailure.NO_RESULTS, f"thumbnail does not decode ({type(error).__name__})") from None


def _check_header(image: Image.Image, data: bytes, declared: int) -> None:
    width, height = image.size
    shape = f"thumbnail of {width}x{height} pixels"
    if width * height > declared:
        raise ProviderError(ToolFailure.NO_RESULTS, f"{shape}: at most {declared} are decoded")
    if min(width, height) < _LEAST_SIDE:
        raise ProviderError(ToolFailure.NO_RESULTS, f"{shape}: a tracking pixel or a rule")
    if max(width, height) > _MOST_ASPECT * min(width, height):
        raise ProviderError(ToolFailure.NO_RESULTS, f"{shape}: too long for its width")
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > _MOST_SCANS:
        raise ProviderError(ToolFailure.NO_RESULTS, f"{shape} in more than {_MOST_SCANS} scans")


def _fine(image: Any, pixels: int) -> bool:
    still = image.format in _STILL and not getattr(image, "is_animated", False)
    plain = image.mode in ("RGB", "L") and "transparency" not in image.info
    return still and plain and image.width * image.height <= pixels and image.getexif().get(_ORIENTATION, 1) == 1


def _shrunk(image: Image.Image, pixels: int) -> Image.Image:
    """First frame, upright, within `pixels`, RGB or grey."""
    scale = min(1.0, math.sqrt(pixels / (image.width * image.height)))
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    image.draft(None, (2 * size[0], 2 * size[1]))  # JPEG: decode at half, a quarter or an eighth where that is enough
    image.load()
    colours = _eight_bit(image)
    if size != colours.size:
        colours = colours.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return _over_white(colours if turn is None else colours.transpose(turn))


def _eight_bit(image: Image.Image) -> Image.Image:
    """RGB, RGBA or L."""
    if image.mode.startswith("I") or image.mode == "F":
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")  # 16-bit grey
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return image.convert("RGBA")
    return image if image.mode in ("RGB", "L") else image.convert("L" if image.mode == "1" else "RGB")


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _encoded(image: Image.Image, *, lossless: bool) -> bytes:
    image.info = {}  # profiles, comments, places
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
