"""Pictures: the model's own resize rule, and typed errors for what is no picture."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from mmsr_ray.agent.pictures import Geometry, PictureLimits, fit, prepare
from mmsr_ray.agent.pieces import PictureError, SizedPicture
from mmsr_ray.agent.tokens import Codec
from tests.agent.scripted import png

GEOMETRY = Geometry(patch=14, merge=2)


def prepared(data: bytes, limits: PictureLimits | None = None) -> SizedPicture:
    return prepare(data, GEOMETRY, 56 * 56, 112 * 112, limits or PictureLimits())


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([(3136, 12_544), (262_144, 903_168), (784, 90_000)]))
def test_fit_agrees_with_the_model(height: int, width: int, bounds: tuple[int, int]) -> None:
    try:
        expected = smart_resize(height, width, 28, *bounds)
    except ValueError:
        with pytest.raises(PictureError, match="one side"):
            fit(height, width, 28, *bounds)
    else:
        assert fit(height, width, 28, *bounds) == expected


def test_a_prepared_picture_is_never_resized_again() -> None:
    once = prepared(png(300, 170))
    again = prepared(once.picture.data)
    assert once == again
    rows, columns = once.grid[1] * 14, once.grid[2] * 14
    assert Image.open(io.BytesIO(once.picture.data)).size == (columns, rows)
    assert Image.open(io.BytesIO(once.picture.data)).mode == "RGB"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (60, 60)).save(buffer, "TIFF")
    assert prepared(buffer.getvalue()).grid == (1, 4, 4)


def test_what_is_no_picture() -> None:
    good = png(200, 200)
    for data, why in [
        (b"", "is empty"),
        (b"not a picture", "cannot be read"),
        (good[: len(good) // 2], "cannot be read"),
        (png(600, 2), "one side may be at most"),
    ]:
        with pytest.raises(PictureError, match=why):
            prepared(data)


def test_huge_pictures_are_refused_before_they_are_decoded() -> None:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")  # 50 kB that decode to 400 M pixels
    for data, limits in [
        (bomb.getvalue(), None),
        (png(200, 200), PictureLimits(max_pixels=39_999)),
        (png(9, 9), PictureLimits(max_bytes=10)),
    ]:
        with pytest.raises(PictureError):
            prepared(data, limits)


def test_thumbnails_stay_small_and_pictures_are_cached(codec: Codec) -> None:
    assert codec.thumbnail(png(30, 30)).grid == (1, 2, 2)
    assert codec.user_picture(png(30, 30)).grid == (1, 4, 4)
    assert codec.thumbnail(png(30, 30)) is codec.thumbnail(png(30, 30))
