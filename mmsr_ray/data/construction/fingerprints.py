"""Perceptual hashes of pictures, and an index that finds the like ones fast. Pure.

A hash says for each of the red, green and blue channels of the picture shrunk to 9 x 8 pixels whether brightness grows from one pixel
to the next: 192 bits, which scaling and compression hardly change. Colour counts, because things of one shape may differ in nothing else.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

SIDE = 8
BITS = 3 * SIDE * SIDE
ROOM = 1024  # hashes, at first


def fingerprint(picture: bytes) -> int:
    """192 bits. Raises OSError for bytes that are no picture."""
    with Image.open(io.BytesIO(picture)) as image:
        image.draft("RGB", (64, 64))  # JPEG: decoded small
        small = image.convert("RGB").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.int16)  # (SIDE, SIDE + 1, 3)
    return int.from_bytes(np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes(), "big")


class Likenesses:
    """Pictures by hash; each new one is like the earliest that differs in at most `bits` bits, or stands for itself.

    Exact: a hash is compared with all others, 24 bytes each. Only those that stand for themselves are kept, so that ten thousand
    near-duplicates cost one comparison each. A first word that differs too much rules most pictures out; things on white ground agree
    there and yet differ, and cost all three words.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._count = 0
        self._words = np.zeros((BITS // 64, ROOM), np.uint64)  # a column for each hash, and room for more

    def find(self, mark: int) -> int | None:
        """The hash of a picture added before that is like this one."""
        words = _words(mark)
        near = np.flatnonzero(np.bitwise_count(self._words[0, : self._count] ^ words[0]) <= self._bits)
        if not near.size:
            return None
        counts = np.bitwise_count(self._words[1:, near] ^ words[1:, None])
        apart = counts[0] + counts[1] + np.bitwise_count(self._words[0, near] ^ words[0])  # at most 192: 8 bits hold it
        place = int((apart <= self._bits).argmax())
        return _mark(self._words[:, near[place]]) if apart[place] <= self._bits else None

    def add(self, mark: int) -> int:
        """The hash that stands for this picture: one found before, or its own from now on."""
        found = self.find(mark)
        if found is not None:
            return found
        if self._count == self._words.shape[1]:
            self._words = np.concatenate([self._words, np.zeros_like(self._words)], axis=1)
        self._words[:, self._count] = _words(mark)
        self._count += 1
        return mark


def _words(mark: int) -> np.ndarray:
    return np.frombuffer(mark.to_bytes(BITS // 8, "little"), np.uint64)


def _mark(words: np.ndarray) -> int:
    return int.from_bytes(words.tobytes(), "little")
