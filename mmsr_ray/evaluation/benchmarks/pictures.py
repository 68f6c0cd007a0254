"""The bytes of a picture out of whatever a data set holds for one.

Promise: bytes, or `BadRow` with a kind. Nothing is fetched from the web: a benchmark whose pictures may change or vanish
between two runs is none.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmsr_ray.data.images import read_beside
from mmsr_ray.data.schema import BadRow

BASE64 = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD", "Qk0")  # how PNG, JPEG, WebP, GIF and BMP begin in base64


def picture_bytes(cell: Any, file: str, folders: Sequence[str] = ()) -> bytes:
    """Of {bytes, path}, bytes, base64 with or without "data:...," before it, a path relative to `file` or absolute, or a list of one.

    A path that leads nowhere (a set made on another machine) is looked for by its name in `folders` beside the file.
    Raises BadRow.
    """
    if isinstance(cell, (list, tuple, np.ndarray)):
        cells = list(cell)
        if len(cells) > 1:
            raise BadRow("more than one image")
        cell = cells[0] if cells else None
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, (bytes, bytearray)) and cell:
        return bytes(cell)
    if not isinstance(cell, str) or not cell.strip():
        raise BadRow("no image")
    text = cell.strip()
    if text.startswith("data:") or text.startswith(BASE64):
        return _decoded(text.partition(",")[2] if text.startswith("data:") else text)
    if text.startswith(("http://", "https://")):
        raise BadRow("image is a web address: download it and name the file")
    return _beside(file, [text, *(f"{folder}/{os.path.basename(text)}" for folder in folders)])


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise BadRow("image is no base64") from error


def _beside(file: str, paths: Sequence[str]) -> bytes:
    for path in paths[:-1]:
        try:
            return read_beside(file, path)
        except BadRow:
            continue
    return read_beside(file, paths[-1])
