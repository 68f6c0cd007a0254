"""Foreign pictures and text: what passes, what is mended, what is refused, and what it costs to find out."""

from __future__ import annotations

import io
import time
import tracemalloc
import unicodedata
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from yarl import URL

from mmsr_ray.tools import foreign
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.types import ToolFailure
from tests.tools.hostile import encoded, many_scans, with_chunk
from tests.tools.web import png

BUDGET = 262_144
PHOTO = Image.effect_mandelbrot((300, 200), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def turned(orientation: int) -> bytes:
    """Left half red, right half blue, to be turned by a viewer."""
    image = Image.new("RGB", (80, 40), (255, 0, 0))
    image.paste((0, 0, 255), (40, 0, 80, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", exif=exif, quality=95, subsampling=0)


@pytest.mark.parametrize(
    "data", [png(), encoded(PHOTO, "JPEG"), encoded(PHOTO.convert("L"), "PNG"), encoded(PHOTO.convert("L"), "JPEG"), turned(1)]
)
def test_a_fine_picture_passes_unchanged(data: bytes) -> None:
    assert foreign.thumbnail(data, BUDGET) == data


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_large_picture_is_scaled_into_the_budget(kind: str) -> None:
    wide = PHOTO.resize((1500, 1000))
    small = opened(foreign.thumbnail(encoded(wide, kind), BUDGET))
    assert (small.format in ("PNG", "JPEG"), small.mode) == (True, "RGB")
    assert 0.97 * BUDGET < small.width * small.height <= BUDGET
    assert small.width / small.height == pytest.approx(1.5, abs=0.01)
    difference = [abs(a - b) for a, b in zip(small.resize((8, 8)).tobytes(), wide.resize((8, 8)).tobytes(), strict=True)]
    assert max(difference) < 25  # the same picture


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "green")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
        still = opened(foreign.thumbnail(data, BUDGET))
        assert getattr(still, "n_frames", 1) == 1
        red, green, blue = still.convert("RGB").getpixel((20, 15))  # type: ignore[misc]
        assert red > 240 > 20 > max(green, blue)


def test_every_orientation_stands_upright_and_metadata_go() -> None:
    red_at = {2: (60, 20), 3: (60, 20), 4: (20, 20), 5: (20, 20), 6: (20, 20), 7: (20, 60), 8: (20, 60)}
    for orientation, at in red_at.items():
        image = opened(foreign.thumbnail(turned(orientation), BUDGET))
        assert image.size == ((80, 40) if orientation < 5 else (40, 80))
        red, _, blue = image.getpixel(at)  # type: ignore[misc]
        assert red > 200 > 60 > blue, orientation
        assert not image.getexif()


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 20, 30))
    palette = Image.new("P", (40, 30), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(1, (0, 0, 20, 30))
    for data in (
        encoded(clear, "PNG"),
        encoded(clear, "WEBP", lossless=True),
        encoded(palette, "PNG", transparency=0),
        encoded(palette, "GIF", transparency=0),
        encoded(clear.convert("LA"), "PNG"),
    ):
        image = opened(foreign.thumbnail(data, BUDGET)).convert("RGB")
        assert image.getpixel((30, 15)) == (255, 255, 255)
        assert image.getpixel((10, 15))[0] < 60  # type: ignore[index]


def test_cmyk_sixteen_bit_and_one_bit() -> None:
    cmyk = opened(foreign.thumbnail(encoded(PHOTO.convert("CMYK"), "JPEG"), BUDGET))
    assert (cmyk.mode, cmyk.size) == ("RGB", PHOTO.size)
    deep = Image.new("I;16", (40, 30), 0x8080)
    grey = opened(foreign.thumbnail(encoded(deep, "PNG"), BUDGET))
    assert (grey.mode, grey.getpixel((3, 3))) == ("L", 0x80)
    bit = opened(foreign.thumbnail(encoded(Image.new("1", (40, 30), 1), "PNG"), BUDGET))
    assert (bit.mode, bit.getpixel((3, 3))) == ("L", 255)


def test_a_profile_and_a_comment_do_not_survive_a_change() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(PHOTO.resize((900, 600)), "JPEG", icc_profile=profile, comment=b"a secret")
    small = foreign.thumbnail(data, BUDGET)
    assert b"a secret" not in small
    assert "icc_profile" not in opened(small).info


SOUND = encoded(PHOTO, "PNG")
REFUSED = {
    "empty": b"",
    "text": b"no picture",
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="100" height="100"/>',
    "truncated png": SOUND[: len(SOUND) // 2],
    "truncated jpeg": encoded(PHOTO, "JPEG")[:2000],
    "header only": b"\x89PNG\r\n\x1a\n" + bytes(50),
    "gif header": b"GIF89a",
    "one pixel": encoded(Image.new("RGB", (1, 1)), "PNG"),
    "one pixel gif": encoded(Image.new("P", (1, 1)), "GIF"),
    "seven rows": encoded(Image.new("RGB", (300, 7)), "PNG"),
    "a rule": encoded(Image.new("L", (9000, 10)), "PNG"),
    "wrong checksum": SOUND[:60] + bytes([SOUND[60] ^ 1]) + SOUND[61:],
    "tiff": encoded(PHOTO, "TIFF"),
    "text bomb": with_chunk(png(), b"zTXt", b"k\0\0" + zlib.compress(bytes(60_000_000))),
    "profile bomb": with_chunk(png(), b"iCCP", b"k\0\0" + zlib.compress(bytes(60_000_000))),
    "canvas": encoded(PHOTO.convert("RGBA"), "WEBP")[:24] + b"\xff\x3f\0" * 2 + encoded(PHOTO.convert("RGBA"), "WEBP")[30:],
    "scans": many_scans(encoded(PHOTO, "JPEG", progressive=True), 100),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ProviderError) as caught:
        foreign.thumbnail(REFUSED[name], BUDGET)
    assert caught.value.failure is ToolFailure.NO_RESULTS
    assert not caught.value.retry
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG", "BMP"])
def test_sixty_megapixels_are_refused_by_the_header(kind: str) -> None:
    data = encoded(Image.new("L", (10_000, 6_000)), kind)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ProviderError, match="10000x6000 pixels"):
        foreign.thumbnail(data, BUDGET)
    took, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < 0.1
    assert peak < 2 * len(data) + 1_000_000


def test_sixteen_megapixels_are_decoded_in_time() -> None:
    data = encoded(Image.new("RGBA", (4_000, 3_990), (1, 2, 3, 128)), "PNG")
    assert foreign.declared_pixels(data) == 4_000 * 3_990
    start = time.perf_counter()
    assert opened(foreign.thumbnail(data, BUDGET)).mode == "RGB"
    assert time.perf_counter() - start < 6.0


@given(st.binary(max_size=400), st.integers(0, 400))
def test_a_damaged_picture_is_a_typed_failure_or_a_picture(noise: bytes, at: int) -> None:
    for sound in (encoded(PHOTO.resize((40, 30)), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP")):
        data = sound[:at] + noise + sound[at + len(noise) :]
        assert fate(data) in ("PNG", "JPEG", ToolFailure.NO_RESULTS)


def fate(data: bytes) -> object:
    try:
        return opened(foreign.thumbnail(data, BUDGET)).format
    except ProviderError as error:
        return error.failure


# ---------------------------------------------------------------------------------------------------------------- text

NASTY = st.text(st.one_of(st.characters(), st.sampled_from("<>|/ \n\r\t\x00\u200b\u202e\U000e0041\ufe0f")), max_size=300)
ARABIC_SIGNS = {
    0x600,
    0x601,
    0x602,
    0x603,
    0x604,
    0x605,
    0x6DD,
    0x70F,
    0x890,
    0x891,
    0x8E2,
    0x110BD,
    0x110CD,
}  # visible, though category Cf


def invisible(text: str) -> list[str]:
    return [
        hex(ord(c)) for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") and c not in "\t\n" and ord(c) not in ARABIC_SIGNS
    ]


@given(NASTY, st.integers(0, 200))
def test_clean_line_is_one_visible_line(text: str, limit: int) -> None:
    line = foreign.clean_line(text, limit)
    assert len(line) <= limit
    assert invisible(line) == []
    assert line == " ".join(line.split())
    line.encode()


@given(NASTY, st.integers(0, 200))
def test_clean_text_is_visible(text: str, limit: int) -> None:
    cleaned = foreign.clean_text(text, limit)
    assert len(cleaned) <= limit
    assert invisible(cleaned) == []
    assert "\n\n\n" not in cleaned
    cleaned.encode()


def test_no_invisible_character_passes() -> None:
    every = "".join(map(chr, range(0x110000)))
    assert invisible(foreign.clean_text(every, len(every))) == []


def test_markup_goes_and_mathematics_stays() -> None:
    assert (
        foreign.clean_line('<b>Eiffel</b> <span class="x">Tower</span><br/>&amp; <IMG src=x onerror="alert(1)">', 100)
        == "Eiffel Tower&amp;"
    )
    assert foreign.clean_line("a < b > c, List<String>, x<y", 100) == "a < b > c, List<String>, x<y"
    start = time.perf_counter()
    foreign.clean_text("<b " * 20_000, 30_000)
    foreign.clean_text("<" * 60_000, 30_000)
    foreign.clean_text("\n \n" * 20_000, 30_000)
    assert time.perf_counter() - start < 1.0


@given(st.one_of(NASTY, NASTY.map(lambda tail: "http://example.org/" + tail), NASTY.map(lambda host: f"https://{host}/")))
def test_a_url_that_passes_is_one_and_spells_no_tag(text: str) -> None:
    url = foreign.web_url(text)
    if url:
        assert len(url) <= foreign.URL_CHARS
        assert not set(url) & set('<>"|\\ \n\t')
        assert invisible(url) == []
        assert URL(url).scheme in ("http", "https")
        assert foreign.web_url(url) == url


def test_urls() -> None:
    assert foreign.web_url("https://x.org/<search><img></search>?a=<|im_start|>") == (
        "https://x.org/%3Csearch%3E%3Cimg%3E%3C/search%3E?a=%3C%7Cim_start%7C%3E"
    )
    assert foreign.web_url("https://de.wikipedia.org/wiki/Köln") == "https://de.wikipedia.org/wiki/Köln"
    for bad in ("https://user@x.org/", "https://u:p@x.org/", "https://", "https://x.org:99999/", "https://[::1", "http://x.org:0/"):
        assert foreign.web_url(bad) == "", bad
