"""Decoded pictures by hash, so that a picture that stays in the prompt for three turns of eight rollouts is decoded once."""

from __future__ import annotations

import io
from collections import OrderedDict

import numpy as np
from PIL import Image

from mmsr_ray.types import Picture


class PixelCache:
    """Least recently used, bounded by decoded bytes. Not thread-safe: one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._arrays: OrderedDict[str, np.ndarray] = OrderedDict()

    def get(self, picture: Picture) -> np.ndarray:
        """uint8 [height, width, 3]; shared, so never write to it."""
        found = self._arrays.get(picture.sha)
        if found is not None:
            self._arrays.move_to_end(picture.sha)
            return found
        with Image.open(io.BytesIO(picture.data)) as image:
            array = np.array(image.convert("RGB"))  # a copy: torch warns about memory that it may not write to
        self._arrays[picture.sha] = array
        self._bytes += array.nbytes
        while self._bytes > self._max_bytes and len(self._arrays) > 1:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array

    def __len__(self) -> int:
        return len(self._arrays)
