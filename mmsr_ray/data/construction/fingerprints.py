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
FEW = 128  # comparisons one by one that take as long as those of some thousands at once
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

    Exact: hashes that differ in at most `bits` bits are equal in one of `bits` + 1 bands at least. Only those that stand for themselves
    are kept, so that ten thousand near-duplicates cost one comparison each. Things on white ground agree in many bands and yet differ:
    where bands would leave many to compare one by one, all are compared at once.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        edges = [BITS * i // (bits + 1) for i in range(bits + 2)]
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
        self._tables: list[dict[int, list[int]]] = [{} for _ in self._bands]  # part of a hash -> places in _marks
        self._marks: list[int] = []
        self._words = np.zeros((BITS // 64, ROOM), np.uint64)  # the same in columns, and room for more

    def find(self, mark: int) -> int | None:
        """The hash of a picture added before that is like this one."""
        near = [table.get(mark >> low & mask, ()) for (low, mask), table in zip(self._bands, self._tables, strict=True)]
        if sum(map(len, near)) > FEW:
            counts = np.bitwise_count(self._words[:, : len(self._marks)] ^ _words(mark)[:, None])
            alike = counts[0] + counts[1] + counts[2] <= self._bits  # at most 192: 8 bits hold it
            place = int(alike.argmax())
            return self._marks[place] if alike[place] else None
        places = [place for bucket in near for place in bucket if (mark ^ self._marks[place]).bit_count() <= self._bits]
        return self._marks[min(places)] if places else None

    def add(self, mark: int) -> int:
        """The hash that stands for this picture: one found before, or its own from now on."""
        found = self.find(mark)
        if found is not None:
            return found
        place = len(self._marks)
        self._marks.append(mark)
        if place == self._words.shape[1]:
            self._words = np.concatenate([self._words, np.zeros_like(self._words)], axis=1)
        self._words[:, place] = _words(mark)
        for (low, mask), table in zip(self._bands, self._tables, strict=True):
            table.setdefault(mark >> low & mask, []).append(place)
        return mark


def _words(mark: int) -> np.ndarray:
    return np.frombuffer(mark.to_bytes(BITS // 8, "little"), np.uint64)
