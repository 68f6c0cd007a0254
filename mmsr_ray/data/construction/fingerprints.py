"""Perceptual hashes of pictures, and an index that finds the like ones fast. Pure.

A hash says for each of the red, green and blue channels of the picture shrunk to 9 x 8 pixels whether brightness grows from one pixel
to the next: 192 bits, which scaling and compression hardly change. Colour counts, because things of one shape may differ in nothing else.
"""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
from PIL import Image

SIDE = 8
BITS = 3 * SIDE * SIDE


def fingerprint(picture: bytes) -> int:
    """192 bits. Raises OSError for bytes that are no picture."""
    with Image.open(io.BytesIO(picture)) as image:
        image.draft("RGB", (64, 64))  # JPEG: decoded small
        small = image.convert("RGB").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.int16)  # (SIDE, SIDE + 1, 3)
    return int.from_bytes(np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes(), "big")


class Likenesses:
    """Pictures by hash; each new one is like the first that differs in at most `bits` bits, or stands for itself.

    Exact: hashes that differ in at most `bits` bits are equal in one of `bits` + 1 bands at least. Only those that stand for themselves
    are kept, so that ten thousand near-duplicates cost one comparison each.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        edges = [BITS * i // (bits + 1) for i in range(bits + 2)]
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
        self._found: list[dict[int, list[int]]] = [{} for _ in self._bands]

    def find(self, mark: int) -> int | None:
        """The hash of a picture added before that is like this one."""
        for (low, mask), table in zip(self._bands, self._found, strict=True):
            for other in table.get(mark >> low & mask, ()):
                if (mark ^ other).bit_count() <= self._bits:
                    return other
        return None

    def add(self, mark: int) -> int:
        """The hash that stands for this picture: one found before, or its own from now on."""
        found = self.find(mark)
        if found is not None:
            return found
        for (low, mask), table in zip(self._bands, self._found, strict=True):
            table.setdefault(mark >> low & mask, []).append(mark)
        return mark
