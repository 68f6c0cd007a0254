"""A folder of pictures as an image search: tiny random models of several families, made here, through the real tools."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ConvNextConfig,
    ConvNextImageProcessor,
    ConvNextModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from mmsr_ray.config import Config, ProviderConfig
from mmsr_ray.tools.errors import Redactor, ToolsError
from mmsr_ray.tools.http import Http
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.tools.providers.embedder import Embedder
from mmsr_ray.tools.providers.image_index import ImageIndex, build
from mmsr_ray.types import ImageHit, ToolFailure, ToolResult
from tests.tools.web import configure, png

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 30,
    "patch_size": 5,
}
WORDS: dict[str, Any] = {"intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
SQUARE = {"height": 30, "width": 30}


def clip(path: Path) -> None:
    words = WORDS | {"hidden_size": 16, "projection_dim": 16}
    CLIPModel(CLIPConfig(vision_config=TOWER | {"projection_dim": 16}, text_config=words, projection_dim=16)).save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": 30}, crop_size=SQUARE).save_pretrained(path)


def siglip(path: Path) -> None:
    SiglipModel(SiglipConfig(vision_config=TOWER, text_config=WORDS | {"hidden_size": 32})).save_pretrained(path)
    SiglipImageProcessor(size=SQUARE).save_pretrained(path)


def vit_without_pooler(path: Path) -> None:
    ViTModel(ViTConfig(**TOWER), add_pooling_layer=False).save_pretrained(path)
    ViTImageProcessor(size=SQUARE).save_pretrained(path)


def convnext(path: Path) -> None:
    ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=64)).save_pretrained(path)
    ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(path)


def made(path: Path, make: Callable[[Path], None] = clip, seed: int = 0) -> str:
    torch.manual_seed(seed)
    make(path)
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made(tmp_path_factory.mktemp("clip"))


def picture(seed: int) -> Image.Image:
    """Broad blots of colour, different for each seed."""
    blots = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((160, 120), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def folder(path: Path, count: int = 12) -> Path:
    (path / "deep").mkdir(parents=True)
    for seed in range(count):
        picture(seed).save(path / ("deep" if seed % 2 else ".") / f"blots-no_{seed:02}.png")
    return path


def tools_over(index: Path, model: str = "") -> Config:
    section = ProviderConfig(kind="image_index", path=str(index), model=model)
    return configure("http://127.0.0.1:9", image_search=section, image_host=ProviderConfig(kind="none"))


async def search(index: Path, data: bytes) -> ToolResult:
    async with LocalTools(tools_over(index)) as tools:
        return await tools.image_search(data, "https://example.org/dead.jpg", "what?")


@pytest.mark.parametrize("make", [clip, siglip, vit_without_pooler, convnext])
async def test_a_picture_finds_itself_and_its_changed_copy_first(tmp_path: Path, make: Callable[[Path], None]) -> None:
    pictures = folder(tmp_path / "pictures")
    changed = ImageEnhance.Brightness(picture(5)).enhance(1.04).resize((150, 110))
    changed.save(pictures / "changed.jpg", quality=85)
    counts = build(pictures, made(tmp_path / "model", make), tmp_path / "index", batch=5)
    assert (counts.pictures, counts.skipped) == (13, ())
    result = await search(tmp_path / "index", encoded(picture(5)))
    assert [hit.title for hit in result.hits][:2] == ["blots no 05", "changed"]
    assert len(result.hits) == 5
    assert all(isinstance(hit, ImageHit) and hit.thumbnail.data for hit in result.hits)
    assert result.cost_usd == 0


def test_vectors_have_length_one_and_are_the_same_in_every_process(tmp_path: Path) -> None:
    for make in (clip, siglip, vit_without_pooler, convnext):
        path = made(tmp_path / make.__name__, make)
        first = Embedder(path)([picture(0), picture(1)])
        torch.manual_seed(99)
        assert first.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(Embedder(path)([picture(0), picture(1)]), first, atol=1e-5)


@pytest.mark.parametrize("sheet", ["metadata.jsonl", "metadata.csv"])
async def test_titles_and_addresses_come_from_the_metadata(tmp_path: Path, model: str, sheet: str) -> None:
    pictures = folder(tmp_path / "pictures", 3)
    named = {"file": "deep/blots-no_01.png", "title": "Blots,\x00 the first", "url": "https://example.org/1"}
    missing = {"file": "gone.png", "title": "Gone", "url": "javascript:x"}
    if sheet.endswith("csv"):
        text = 'file,title,url\ndeep/blots-no_01.png,"Blots,\x01 the first",https://example.org/1\ngone.png,Gone,\n'
    else:
        text = f"{json.dumps(named)}\n\n{json.dumps(missing)}\n"
    (pictures / sheet).write_text(text)
    build(pictures, model, tmp_path / "index")
    result = await search(tmp_path / "index", encoded(picture(1)))
    assert (result.hits[0].title, result.hits[0].url) == ("Blots, the first", "https://example.org/1")
    assert sorted(hit.title for hit in result.hits[1:]) == ["blots no 00", "blots no 02"]


async def test_broken_files_are_skipped_and_named_and_a_photograph_of_60_megapixels_is_not(tmp_path: Path, model: str) -> None:
    pictures = folder(tmp_path / "pictures", 2)
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "cut.png").write_bytes(png(side=200)[:60])
    (pictures / "page.jpeg").write_bytes(b"<html>404</html>")
    (pictures / "notes.txt").write_text("no picture, not looked at")
    Image.new("1", (20_000, 6_000)).save(pictures / "bomb.png")
    photograph = encoded(picture(7).resize((9_500, 6_400), Image.Resampling.NEAREST), "JPEG")
    (pictures / "photograph.jpg").write_bytes(photograph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        made_of = build(pictures, model, tmp_path / "index", batch=1)
    assert made_of.pictures == 3
    assert [line.split(":")[0] for line in made_of.skipped] == ["bomb.png", "cut.png", "empty.jpg", "page.jpeg"]
    assert all(line.split(": ", 1)[1] for line in made_of.skipped)
    result = await search(tmp_path / "index", photograph)
    first = result.hits[0]
    assert isinstance(first, ImageHit)
    assert first.title == "photograph"
    assert len(first.thumbnail.data) < 100_000


async def test_a_users_picture_that_is_none(tmp_path: Path, model: str) -> None:
    build(folder(tmp_path / "pictures", 2), model, tmp_path / "index")
    for data in (b"", b"no picture", png()[:40]):
        result = await search(tmp_path / "index", data)
        assert result.failure is ToolFailure.REJECTED
        assert "cannot be searched for" in result.detail


async def test_building_again_replaces_and_changes_the_identity(tmp_path: Path, model: str) -> None:
    def identity() -> str:
        return ImageIndex(tools_over(tmp_path / "index").tools.image_search, Http(Redactor()), "").identity

    pictures = folder(tmp_path / "pictures", 3)
    build(pictures, model, tmp_path / "index")
    before = identity()
    assert identity() == before  # a second build may differ in the last bit of a vector, and then asks anew
    picture(50).save(pictures / "new.png")
    build(pictures, model, tmp_path / "index")
    assert identity() != before
    assert (await search(tmp_path / "index", encoded(picture(50)))).hits[0].title == "new"
    assert sorted(os.listdir(tmp_path)) == ["index", "pictures"]


def test_what_cannot_be_built_is_one_sentence(tmp_path: Path, model: str) -> None:
    pictures, empty, full = folder(tmp_path / "pictures", 1), tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "precious.txt").write_text("keep")
    for arguments, words in (
        ((tmp_path / "nowhere", model, tmp_path / "i"), "there is no folder"),
        ((empty, model, tmp_path / "i"), "no usable picture under"),
        ((pictures, model, full), "is no image index: name another folder"),
        ((pictures, str(tmp_path / "no model"), tmp_path / "i"), "cannot be loaded"),
        ((pictures, "", tmp_path / "i"), "needs a vision model"),
    ):
        with pytest.raises(ToolsError, match=words):
            build(*arguments)
    (pictures / "metadata.jsonl").write_text('{"file": "a"}\n{broken\n')
    with pytest.raises(ToolsError, match=r"metadata\.jsonl, line 2, is not JSON"):
        build(pictures, model, tmp_path / "i")
    (pictures / "metadata.jsonl").write_text('{"name": "a"}\n')
    with pytest.raises(ToolsError, match="line 1, has no field 'file'"):
        build(pictures, model, tmp_path / "i")
    assert (full / "precious.txt").exists()
    assert not (tmp_path / "i").exists()


def test_an_index_starts_only_with_the_model_that_built_it(tmp_path: Path, model: str) -> None:
    build(folder(tmp_path / "pictures", 2), model, tmp_path / "index")
    LocalTools(tools_over(tmp_path / "index", model))
    for other in (made(tmp_path / "seeded", clip, seed=1), made(tmp_path / "siglip", siglip)):
        with pytest.raises(ToolsError, match=r"was built by .* set tools\.image_search\.model to that, or build it again"):
            LocalTools(tools_over(tmp_path / "index", other))
    (tmp_path / "index" / "vectors.usearch").write_bytes(b"junk")
    for broken in (tmp_path / "index", tmp_path / "pictures"):
        with pytest.raises(ToolsError, match="is no image index"):
            LocalTools(tools_over(broken, model))
