"""Reads pickles of plain values and Pillow pictures, from strangers and from any version of Pillow.

Promise: nothing named in the file is imported or run. Every class that a pickled picture mentions is replaced by an
inert stand-in that only remembers its state; any other name raises `PickleRefused`, before it is looked up.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from PIL import Image

_MAX_PIXELS = 16_000_000
_QUALITY = 90
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I", "F", "I;16"}


class PickleRefused(ValueError):
    """The file is no pickle, or not one of plain values and pictures. The message names what is foreign in it."""


class PickledPicture:
    """Stand-in for a picture: the state as Pillow wrote it, [info, mode, size, palette, pixels, ...]."""

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def jpeg(self) -> bytes:
        """The picture as an RGB JPEG, on white where it is transparent. Raises PickleRefused when the state is no picture."""
        try:
            _, mode, (width, height), palette, pixels = self.state[:5]
            if mode not in _MODES or not isinstance(pixels, bytes) or not 0 < width * height <= _MAX_PIXELS:
                raise PickleRefused(f"a picture of mode {mode!r} and {width}x{height} pixels")
            picture = Image.frombytes(mode, (width, height), pixels)
            if mode in ("P", "PA"):
                picture.putpalette(palette)
            return _jpeg(picture)
        except PickleRefused:
            raise
        except Exception as error:  # the state is foreign: anything may be in it
            raise PickleRefused(f"a picture whose state does not fit ({type(error).__name__})") from None


class _Inert:
    """Stand-in for what a picture's `info` holds: text chunks, ratios, enumerations. Taken and ignored."""

    def __new__(cls, *_: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _reconstructor(stand_in: Any, *_: Any) -> Any:
    """In place of copyreg._reconstructor, for pickles of protocol 0 and 1."""
    if stand_in not in (PickledPicture, _Inert):
        raise PickleRefused("a reconstruction of something that is no picture")
    return stand_in()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """In place of _codecs.encode, by which protocols 0 to 2 write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise PickleRefused(f"bytes in the encoding {encoding!r}")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """In place of bytes(), by which protocols 0 to 2 write no bytes."""
    return b""


_HELPERS: dict[tuple[str, str], Any] = {
    ("copyreg", "_reconstructor"): _reconstructor,
    ("copy_reg", "_reconstructor"): _reconstructor,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "object"): _Inert,
    ("__builtin__", "object"): _Inert,
    ("builtins", "str"): _Inert,  # the base of a text chunk
    ("__builtin__", "unicode"): _Inert,
    ("collections", "OrderedDict"): dict,
    ("fractions", "Fraction"): _Inert,
    ("PIL.TiffImagePlugin", "IFDRational"): _Inert,
    ("PIL.PngImagePlugin", "iTXt"): _Inert,
    ("PIL.PngImagePlugin", "Blend"): _Inert,
    ("PIL.PngImagePlugin", "Disposal"): _Inert,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HELPERS:
            return _HELPERS[module, name]
        plugin = module.startswith("PIL.") and module.endswith("ImagePlugin") and name.endswith("ImageFile")
        if plugin or (module, name) == ("PIL.Image", "Image"):
            return PickledPicture
        raise PickleRefused(f"it names {module}.{name}, which is neither a plain value nor a picture")

    def persistent_load(self, pid: Any) -> Any:
        raise PickleRefused("it refers to objects outside itself")


def load(path: Path) -> Any:
    """The value in `path`, pictures as PickledPicture. Raises PickleRefused; FileNotFoundError and the like as they are."""
    data = path.read_bytes()
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except PickleRefused as refusal:
        raise PickleRefused(f"{path} is refused: {refusal}") from None
    except Exception as error:  # on garbage the pickle module raises almost anything
        raise PickleRefused(f"{path} is no readable pickle ({type(error).__name__})") from None


def _jpeg(picture: Image.Image) -> bytes:
    if picture.has_transparency_data:
        alpha = picture.convert("RGBA")
        picture = Image.new("RGB", alpha.size, "white")
        picture.paste(alpha, mask=alpha.getchannel("A"))
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
