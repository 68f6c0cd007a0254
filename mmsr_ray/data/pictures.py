"""The bytes of a picture out of whatever a data set holds for one.

Promise: bytes, or `BadRow` with a kind.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec
import numpy as np

from mmsr_ray.data.schema import BadRow

BASE64 = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD", "Qk0")  # how PNG, JPEG, WebP, GIF and BMP begin in base64


def picture_bytes(cell: Any, file: str, folders: Sequence[str] = ()) -> bytes:
    """Of {bytes, path}, bytes, base64 with or without "data:...," before it, a path relative to `file` or absolute, or a list of one.

    A path that leads nowhere (a set made on another machine) is looked for by its name in `folders` beside the file. A bare web
    address is refused: what it leads to may be another picture tomorrow. Raises BadRow.
    """
    if isinstance(cell, (list, tuple, np.ndarray)):
        cells = list(cell)
        if len(cells) > 1:
            raise BadRow("more than one image")
        cell = cells[0] if cells else None
    if isinstance(cell, Mapping):
        if not cell.get("bytes") and cell.get("path"):
            return _beside(file, str(cell["path"]), folders)
        cell = cell.get("bytes")
    if isinstance(cell, (bytes, bytearray)) and cell:
        return bytes(cell)
    if not isinstance(cell, str) or not cell.strip():
        raise BadRow("no image")
    text = cell.strip()
    if text.startswith("data:") or text.startswith(BASE64):
        return _decoded(text.partition(",")[2] if text.startswith("data:") else text)
    if text.startswith(("http://", "https://")):
        raise BadRow("image is a web address: download it and name the file")
    return _beside(file, text, folders)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise BadRow("image is no base64") from error


def _beside(file: str, path: str, folders: Sequence[str]) -> bytes:
    for folder in folders:
        try:
            return read_beside(file, f"{folder}/{os.path.basename(path)}")
        except BadRow:
            continue
    return read_beside(file, path)


def read_beside(file: str, path: str) -> bytes:
    """A picture stored beside a data file, by a path relative to its folder or absolute. Raises BadRow where it is missing."""
    target = path if os.path.isabs(path) or "://" in path else os.path.join(os.path.dirname(file), path)
    try:
        filesystem, path = fsspec.core.url_to_fs(target)
        return filesystem.cat_file(path)
    except OSError as error:
        raise BadRow("image file missing") from error
