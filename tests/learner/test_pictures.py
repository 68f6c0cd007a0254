from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from mmsr_ray.learner.pictures import PatchCache, PictureError, VisionGeometry, patches_of
from mmsr_ray.types import Picture
from tests.learner.conftest import make_picture


@pytest.mark.parametrize("size", [(28, 28), (56, 56), (140, 84), (28, 168)])
def test_patches_equal_the_processors(processor: Qwen2VLImageProcessor, geometry: VisionGeometry, size: tuple[int, int]) -> None:
    image = Image.open(io.BytesIO(make_picture(*size, seed=3).data))
    expected = processor(images=[image], return_tensors="pt")
    patches, grid = patches_of(np.array(image), geometry)
    assert [list(grid)] == expected["image_grid_thw"].tolist()
    torch.testing.assert_close(patches, expected["pixel_values"], rtol=0, atol=1e-6)


def test_a_side_that_does_not_divide_is_an_error(geometry: VisionGeometry) -> None:
    with pytest.raises(PictureError, match="30x28"):
        patches_of(np.zeros((28, 30, 3), np.uint8), geometry)


def test_broken_bytes_are_an_error(cache: PatchCache) -> None:
    with pytest.raises(PictureError, match="does not decode"):
        cache.get(Picture(b"not a picture", "ff" * 32))


def test_cache_computes_once_and_stays_in_its_budget(geometry: VisionGeometry) -> None:
    one, two = make_picture(56, 56, 1), make_picture(56, 56, 2)
    size = 16 * geometry.patch_values * 4
    cache = PatchCache(geometry, max_bytes=size)
    first = cache.get(one)
    assert cache.get(one) is first
    assert (cache.hits, cache.misses) == (1, 1)
    cache.get(two)
    cache.get(one)
    assert cache.misses == 3
