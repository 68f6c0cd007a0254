"""Text search over pages of one's own: built from files, found in any script, read without a network or a key."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsr_ray.config import Config, ProviderConfig
from mmsr_ray.tools.errors import ProviderError, Redactor, ToolsError
from mmsr_ray.tools.http import Http
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.tools.providers.base import Page
from mmsr_ray.tools.providers.corpus import Bm25, Built, CorpusReader, build
from mmsr_ray.types import TextHit, ToolFailure

PAGES = [
    {"url": "https://e.org/lighthouse", "title": "Lighthouse", "text": "The lighthouse was built in 1805 by the harbour company. It is white."},
    {"url": "https://e.org/tower", "title": "東京タワー", "text": "東京タワーの高さは333メートルである。1958年に完成した。"},
    {"url": "https://e.org/dog", "title": "Dog", "text": "A dog barks. A dog sleeps. A dog eats."},
    {"url": "https://e.org/cat", "title": "Cat", "text": "A cat sleeps near the lighthouse and near the dog."},
    {"url": "https://e.org/башня", "title": "Башня", "text": "Останкинская башня находится в Москве."},
]  # fmt: skip


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build(write(tmp_path / "pages.jsonl", PAGES), tmp_path / "index")
    return tmp_path / "index"


def search(index: Path) -> Bm25:
    return Bm25(ProviderConfig(kind="bm25", path=str(index)), Http(Redactor()), "")


def reader(index: Path) -> CorpusReader:
    return CorpusReader(ProviderConfig(kind="corpus", path=str(index)), Http(Redactor()), "")


async def found(provider: Bm25, query: str, limit: int = 10) -> list[str]:
    return [lead.url.removeprefix("https://e.org/") for lead in await provider.search(query, limit)]


async def test_search_and_read(index: Path) -> None:
    provider, pages = search(index), reader(index)
    assert isinstance(provider._index.scores["data"], np.memmap)
    assert await found(provider, "Who built the LIGHTHOUSE?") == ["lighthouse", "cat"]
    assert await found(provider, "dog", 1) == ["dog"]
    assert await found(provider, "東京タワーの高さは?") == ["tower"]
    assert (await provider.search("高さ", 5))[0].title == "東京タワー"
    russian = (await provider.search("башня в Москве", 5))[0]
    assert await pages.read(russian.url) == Page("Башня", "Останкинская башня находится в Москве.")
    for nothing in ("", "   ", "?!", "zeppelin", "ツェッペリン"):
        with pytest.raises(ProviderError) as caught:
            await provider.search(nothing, 5)
        assert caught.value.failure is ToolFailure.NO_RESULTS
    with pytest.raises(ProviderError) as missing:
        await pages.read("https://e.org/elsewhere?key=1")
    assert missing.value.failure is ToolFailure.NO_RESULTS
    assert "key=1" not in missing.value.detail


async def test_answers_do_not_depend_on_who_asks_beside(index: Path) -> None:
    provider = search(index)
    one = await provider.search("dog lighthouse", 5)
    assert all(answer == one for answer in await asyncio.gather(*(provider.search("lighthouse dog dog", 5) for _ in range(50))))
    assert len(await provider.search("dog " * 100_000, 5)) == 2


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    bad: list[Any] = [
        "not json", "[" * 10_000, [1], None, {"url": "https://e.org/x"}, {"url": "https://e.org/x", "text": "  "},
        {"url": "ftp://e.org/x", "text": "t"}, {"url": None, "text": "t"}, {"url": "https://e.org/x", "text": 5}, '{"url": "https://e.org/x", "text": "\\ud800"}',
    ]  # fmt: skip
    repeated = [PAGES[0], PAGES[0] | {"text": "another"}]
    file = write(tmp_path / "pages.jsonl", [*bad, *PAGES, "", *repeated])
    file.write_bytes(file.read_bytes() + b'\n{"url": "https://e.org/x", "text": "\xff"}')
    built = build(file, tmp_path / "index")
    assert (built.pages, built.skipped, built.repeated) == (5, 11, 2)
    assert asyncio.run(found(search(tmp_path / "index"), "harbour")) == ["lighthouse"]  # the first of its URL


def test_parquet_and_jsonl_give_the_same_index(tmp_path: Path, index: Path) -> None:
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row | {"more": 1} for row in PAGES[:3]]), tmp_path / "parts" / "a.parquet")
    write(tmp_path / "parts" / "deep" / "b.jsonl", PAGES[3:])
    (tmp_path / "parts" / "notes.txt").write_text("no page")
    assert build(tmp_path / "parts", tmp_path / "again") == Built(
        pages=5, skipped=0, repeated=0, words=search(index)._index.scores["indptr"].size - 1
    )
    assert search(tmp_path / "again").identity == search(index).identity
    build(write(tmp_path / "other.jsonl", [PAGES[0] | {"text": "It is red."}, *PAGES[1:]]), tmp_path / "other")
    assert len({search(tmp_path / "other").identity, search(index).identity, reader(index).identity}) == 3


def test_without_a_title_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["A tower."], "url": ["https://e.org/t"]}), tmp_path / "p.parquet")
    build(tmp_path / "p.parquet", tmp_path / "index")
    assert asyncio.run(search(tmp_path / "index").search("tower", 3))[0].title == ""


def test_what_cannot_be_built_says_why_and_leaves_nothing(tmp_path: Path, index: Path) -> None:
    cases: list[tuple[Path, str]] = [
        (tmp_path / "nowhere", "no .jsonl or .parquet file"),
        (write(tmp_path / "empty.jsonl", []), "nothing to index"),
        (write(tmp_path / "useless.jsonl", [{"url": "https://e.org/x", "text": "?!"}]), "nothing to index"),
        (write(tmp_path / "broken.parquet", ["no parquet"]), "no parquet file"),
        (write(tmp_path / "pages.csv", ["url,text"]), "no .jsonl or .parquet file"),
    ]
    pq.write_table(pa.table({"link": ["https://e.org"], "text": ["t"]}), tmp_path / "columns.parquet")
    cases.append((tmp_path / "columns.parquet", "url and text are needed"))
    for pages, why in cases:
        with pytest.raises(ToolsError, match=why):
            build(pages, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob("*.unfinished"))
    with pytest.raises(ToolsError, match="is there already"):
        build(tmp_path / "pages.jsonl", index)


def test_a_folder_that_is_no_index_is_refused_at_start(tmp_path: Path, index: Path) -> None:
    (index / "corpus.json").write_text('{"format": 0}')
    for folder in (tmp_path, index, tmp_path / "nowhere"):
        with pytest.raises(ToolsError, match="index-pages"):
            search(folder)
        with pytest.raises(ToolsError, match="index-pages"):
            reader(folder)


def keyless(index: Path) -> Config:
    """Nothing in it asks the network or the environment; image search is not used."""
    config = Config()
    tools = config.tools
    tools.image_search = ProviderConfig(kind="serpapi_lens", url="http://127.0.0.1:9/search.json")
    tools.text_search, tools.reader = ProviderConfig(kind="bm25", path=str(index)), ProviderConfig(kind="corpus", path=str(index))
    tools.summariser = ProviderConfig(kind="extractive")
    return config


async def test_text_search_without_network_or_keys(index: Path) -> None:
    async with LocalTools(keyless(index)) as tools:
        result = await tools.text_search("lighthouse harbour", "When was the lighthouse built?")
        assert result.ok and not result.partial and result.cost_usd == 0.0
        assert [(h.url, h.title) for h in result.hits if isinstance(h, TextHit)] == [
            ("https://e.org/lighthouse", "Lighthouse"),
            ("https://e.org/cat", "Cat"),
        ]
        assert "1805" in result.hits[0].summary  # type: ignore[union-attr]
        japanese = await tools.text_search("東京タワー", "高さは何メートルですか")
        assert "333" in japanese.hits[0].summary  # type: ignore[union-attr]
        assert (await tools.text_search("zeppelin", "x")).failure is ToolFailure.NO_RESULTS
        assert pickle.loads(pickle.dumps(result)) == result
