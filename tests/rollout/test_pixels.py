"""Decoded pictures: right pixels, decoded once, bounded."""

import hashlib
import io

import numpy as np
from PIL import Image

from mmsr_ray.rollout.pixels import PixelCache
from mmsr_ray.types import Picture


def picture(value: int, side: int = 28) -> Picture:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 255)).save(buffer, format="PNG")
    return Picture(buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest())


def test_pixels_are_decoded_once() -> None:
    cache = PixelCache(1 << 20)
    first = cache.get(picture(7))
    assert first.shape == (28, 28, 3)
    assert first.dtype == np.uint8
    assert (first == [7, 0, 255]).all()
    assert cache.get(picture(7)) is first


def test_the_least_recently_used_go_first() -> None:
    cache = PixelCache(3 * 28 * 28 * 3)
    kept = cache.get(picture(0))
    for value in range(1, 10):
        cache.get(picture(value))
        assert cache.get(picture(0)) is kept
    assert len(cache) == 3
    assert cache.get(picture(1, side=280)).shape == (280, 280, 3)  # larger than the whole cache: served all the same
