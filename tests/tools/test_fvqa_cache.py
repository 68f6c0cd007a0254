"""The released image-search cache: a restricted unpickler, the conversion, and lookups by the picture's own bytes."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageChops, ImageStat, PngImagePlugin
from PIL.TiffImagePlugin import IFDRational

from mmsr_ray.config import Config, DataConfig, ProviderConfig
from mmsr_ray.data.reader import read_samples
from mmsr_ray.data.schema import DataError, write_fvqa
from mmsr_ray.tools.errors import ToolsError
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.tools.providers.fvqa_cache import SCHEMA, Converted, convert
from mmsr_ray.tools.providers.pickled_pictures import PickledPicture, PickleRefused, load
from mmsr_ray.types import ImageHit, Sample, ToolFailure
from tests.tools.web import Web, configure, png

TITLES, PICTURES = "tool_returned_web_title_list", "tool_returned_images_urls"


def reopened(picture: Image.Image, kind: str, **options: Any) -> Image.Image:
    """As a reader of files has it: a JpegImageFile, PngImageFile, ..."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def gradient(mode: str = "RGB") -> Image.Image:
    picture = Image.linear_gradient("L").resize((40, 30))
    return Image.merge("RGB", (picture, picture.rotate(180), picture)).convert(mode)


def entry(*hits: tuple[str, Any]) -> dict[str, list[Any]]:
    return {TITLES: [title for title, _ in hits], PICTURES: [picture for _, picture in hits]}


def dump(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def dataset(path: Path, pictures: dict[str, bytes]) -> Path:
    write_fvqa(path, [Sample(uid, "What?", data, ("x",), "mmsearch_r1/test") for uid, data in pictures.items()])
    return path


def tools_over(path: Path, root: str = "http://127.0.0.1:9") -> Config:
    return configure(root, image_search=ProviderConfig(kind="fvqa_cache", path=str(path)), image_host=ProviderConfig(kind="none"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pillows_own_pickles_are_read_whatever_the_protocol(tmp_path: Path, protocol: int) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("Title", "ünïcode")
    pictures = [
        gradient(),
        reopened(gradient(), "JPEG", quality=95, dpi=(72, 72)),
        reopened(gradient("L"), "JPEG", quality=95),
        reopened(gradient(), "PNG", pnginfo=text),
        reopened(gradient("P"), "PNG"),
        reopened(gradient("1"), "PNG"),
        reopened(gradient(), "WEBP", lossless=True),
        reopened(gradient("P"), "GIF"),
    ]
    pictures[1].info["dpi"] = (IFDRational(72, 1), Fraction(1, 3))
    read = load(dump(tmp_path / "p", pictures, protocol))
    assert all(isinstance(picture, PickledPicture) for picture in read)
    for picture, copy in zip(pictures, read, strict=True):
        with Image.open(io.BytesIO(copy.jpeg())) as again:
            assert (again.format, again.mode, again.size) == ("JPEG", "RGB", (40, 30))
            difference = ImageChops.difference(again, picture.convert("RGB"))
            assert max(ImageStat.Stat(difference).mean) < 16


def test_transparency_lies_on_white_and_states_of_older_and_newer_pillows_fit(tmp_path: Path) -> None:
    (clear,) = load(dump(tmp_path / "clear", [Image.new("RGBA", (8, 8), (0, 0, 0, 0))]))
    with Image.open(io.BytesIO(clear.jpeg())) as picture:
        assert picture.getpixel((4, 4)) == (255, 255, 255)
    copy = PickledPicture()
    for more in ([], ["name.jpg"], ["name.jpg", 3, []]):
        copy.__setstate__([{}, "RGB", (2, 2), None, bytes(12), *more])
        assert copy.jpeg().startswith(b"\xff\xd8")


class Command:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self._call = call, arguments

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (os.system, ("touch {}",)),
        (eval, ("__import__('os').system('touch {}')",)),
        (getattr, ("a", "b")),
        (Image.open, ("{}",)),
        (bytearray, (1 << 40,)),
        (io.open, ("{}", "w")),
        (__import__, ("os",)),
    ],
)
def test_anything_else_is_refused_and_nothing_runs(tmp_path: Path, call: Any, arguments: tuple[Any, ...]) -> None:
    mark = tmp_path / "ran"
    given = [argument.format(mark) if isinstance(argument, str) else argument for argument in arguments]
    file = dump(tmp_path / "evil", {"fvqa_train_0": entry(("a", Command(call, *given)))})
    with pytest.raises(PickleRefused, match=r"which is neither a plain value nor a picture"):
        load(file)
    with pytest.raises(ToolsError, match="cannot be read"):
        convert(file, [], tmp_path / "out.parquet")
    assert not mark.exists()
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cPIL.Image\nopen\n(V/etc/passwd\ntR.",
        b"cPIL.JpegImagePlugin\nos.system\n(Vtrue\ntR.",
        b"ccopyreg\n_reconstructor\n(cbuiltins\nbytes\ncbuiltins\nobject\nNtR.",
        b"cbuiltins\nbytes\n(I1099511627776\ntR.",
        b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
        b"cPIL.Image\nImage\n(dVa\nI1\nsb.",  # state put on the class itself
        b"Pexternal\n.",
        b"\x82\x01.",
        b"",
        b"garbage",
        pickle.dumps([1, 2, 3])[:-4],
        b"(" * 100_000 + b".",
    ],
)
def test_hostile_and_broken_programs_end_in_one_error(tmp_path: Path, program: bytes) -> None:
    file = tmp_path / "p"
    file.write_bytes(program)
    with pytest.raises(PickleRefused, match=str(file)):
        load(file)


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        [{}, "RGB", (2, 2), None],
        [{}, "RGB", (99_999, 99_999), None, b""],
        [{}, "RGB", (2, 2), None, b"short"],
        [{}, "RGB", (2, 2), None, 1 << 40],
        [{}, "no mode", (2, 2), None, bytes(12)],
        [{}, "P", (2, 2), "palette", bytes(4)],
        [{}, "RGB", ("a", -1), None, bytes(12)],
    ],
)
def test_states_that_are_no_picture(state: Any) -> None:
    copy = PickledPicture()
    copy.__setstate__(state)
    with pytest.raises(PickleRefused):
        copy.jpeg()


async def test_conversion_and_lookup(web: Web, tmp_path: Path) -> None:
    rows = {f"fvqa_train_{i}": png(i) for i in range(40)} | {"fvqa_train_40": png(3)}  # the last shows the picture of number 3
    hits = [("First", reopened(gradient(), "JPEG")), ("Second", f"{web.root}/thumb/7"), ("", gradient()), ("No picture", None)]
    searches = {name: entry(*hits) for name in rows if name != "fvqa_train_1"} | {"fvqa_train_999": entry(*hits)}
    searches["fvqa_train_2"] = entry(("Broken", "ftp://nowhere"), ("Third", gradient("RGBA")))
    out = tmp_path / "cache.parquet"
    made = convert(dump(tmp_path / "p", searches), [dataset(tmp_path / "train.parquet", rows)], out)
    assert made == Converted(39, 38 * 2 + 1, repeated=1, entries_without_row=1, rows_without_entry=1, hits_dropped=38 * 2 + 1)
    assert pq.ParquetFile(out).metadata.num_row_groups == 3
    async with LocalTools(tools_over(out, web.root)) as tools:
        await tools.check()
        found = await tools.image_search(png(0), None, "q")
        (third,) = (await tools.image_search(png(2), "https://example.org/dead.jpg", "q")).hits
        absent = [await tools.image_search(data, None, "q") for data in (png(1), b"", b"no picture")]
    assert [hit.title for hit in found.hits] == ["First", "Second"]
    first, second = (hit for hit in found.hits if isinstance(hit, ImageHit))
    assert first.thumbnail.data.startswith(b"\xff\xd8")
    assert second.thumbnail.data == png(7)
    assert third.title == "Third"
    assert {result.failure for result in absent} == {ToolFailure.NO_RESULTS}
    assert found.cost_usd == 0


async def test_the_key_is_the_very_picture_that_a_sample_carries(tmp_path: Path) -> None:
    file = dataset(tmp_path / "d.parquet", {"a": png(1), "b": png(2)})
    convert(dump(tmp_path / "p", {"b": entry(("Title", gradient()))}), [file], tmp_path / "c.parquet")
    (sample,) = [sample for sample in read_samples(str(file), DataConfig()) if sample.uid == "b"]
    assert pq.read_table(tmp_path / "c.parquet").column("sha").to_pylist() == [hashlib.sha256(sample.image).hexdigest()]
    async with LocalTools(tools_over(tmp_path / "c.parquet")) as tools:
        assert (await tools.image_search(sample.image, sample.image_url, sample.question)).ok


async def test_a_folder_of_caches_is_one(tmp_path: Path) -> None:
    for split, colour in (("train", 1), ("test", 2)):
        data = dataset(tmp_path / f"{split}-data.parquet", {f"fvqa_{split}_0": png(colour)})
        convert(dump(tmp_path / "p", {f"fvqa_{split}_0": entry((split, gradient()))}), [data], tmp_path / "caches" / f"{split}.parquet")
    async with LocalTools(tools_over(tmp_path / "caches")) as tools:
        assert [(await tools.image_search(png(colour), None, "q")).hits[0].title for colour in (1, 2)] == ["train", "test"]


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    data, out = dataset(tmp_path / "d.parquet", {"a": png()}), tmp_path / "c.parquet"
    with pytest.raises(ToolsError, match=r"no data_id of .* name the data set that belongs to this cache"):
        convert(dump(tmp_path / "p", {"z": entry()}), [data], out)
    for value in ([1], {}, {1: entry()}):
        with pytest.raises(ToolsError, match="name the pickle that was released with FVQA"):
            convert(dump(tmp_path / "p", value), [data], out)
    with pytest.raises(ToolsError, match=r"entry 'a' .* lacks the lists"):
        convert(dump(tmp_path / "p", {"a": {"titles": []}}), [data], out)
    with pytest.raises(ToolsError, match="cannot be read"):
        convert(tmp_path / "nowhere", [data], out)
    with pytest.raises(DataError, match="there is no parquet file"):
        convert(dump(tmp_path / "p", {"a": entry()}), [tmp_path / "none.parquet"], out)
    assert not list(tmp_path.glob("c.parquet*"))


def test_a_path_that_is_no_cache_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "nowhere", "nothing lies there"),
        (tmp_path / "junk.parquet", "is no parquet file"),
        (tmp_path / "empty", "has no parquet file"),
        (dataset(tmp_path / "d.parquet", {"a": png()}), "is not a converted cache"),
    ):
        with pytest.raises(ToolsError, match=rf"tools\.image_search\.path.*{words}"):
            LocalTools(tools_over(path))
    assert SCHEMA.names == ["sha", "data_id", "hits"]


def test_the_hostile_programs_above_are_real(tmp_path: Path) -> None:
    """That they are refused means something only if pickle itself would have run them."""
    file = dump(tmp_path / "evil", Command(os.system, f"touch {tmp_path / 'ran'}"))
    assert any(name == "STACK_GLOBAL" for name, *_ in ((op.name, arg) for op, arg, _ in pickletools.genops(file.read_bytes())))
    pickle.loads(file.read_bytes())
    assert (tmp_path / "ran").exists()
