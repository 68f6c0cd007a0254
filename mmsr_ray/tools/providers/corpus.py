"""Text search without the web: a BM25 index (bm25s) over pages of one's own, and the reader of those pages.

Promise: an index is whole or absent (written aside, then renamed), is memory-mapped so that the processes of a machine
share it, and names its content: `identity` changes when a page does. The same pages give the same index and answers.
Words are cut as in `words`, so scripts without spaces are found too.

Layout of an index folder: `corpus.json` (what it is), `pages.sqlite` (the pages), `bm25/` (bm25s' own files).
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import shutil
import sqlite3
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mmsr_ray.config import ProviderConfig
from mmsr_ray.tools.errors import ProviderError, ToolsError
from mmsr_ray.tools.foreign import TITLE_CHARS, clean_line, clean_text, web_url
from mmsr_ray.tools.http import Http, public
from mmsr_ray.tools.providers.base import Lead, Page, Provider
from mmsr_ray.tools.providers.words import words
from mmsr_ray.types import ToolFailure

FORMAT = 1  # of an index; goes up when one must be built anew, also for another way to cut words
TEXT_CHARS = 1_000_000  # of a page that are kept
QUERY_CHARS = 2_000
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Built:
    """What an index was made of. `skipped` rows had no http(s) URL or no text, `repeated` ones a URL that came before."""

    pages: int
    skipped: int
    repeated: int
    words: int  # different ones


def build(pages: Path, out: Path) -> Built:
    """Index `pages`, a .jsonl or .parquet file or a folder of them with columns url, title, text, into the new folder `out`.

    Raises ToolsError: no such files, a missing column, no usable page, or `out` is there already.
    """
    if out.exists():
        raise ToolsError(f"{out} is there already: name a new folder for the index, or remove it")
    files = _files(pages)
    aside = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        built = _write(files, aside)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return built


def _files(pages: Path) -> list[Path]:
    found = [pages] if pages.is_file() else sorted(p for p in pages.glob("**/*") if p.suffix in (".jsonl", ".parquet") and p.is_file())
    if not found or found[0].suffix not in (".jsonl", ".parquet"):
        raise ToolsError(f"{pages}: no .jsonl or .parquet file with columns url, title, text lies there")
    return found


def _write(files: list[Path], out: Path) -> Built:
    vocabulary: defaultdict[str, int] = defaultdict(lambda: len(vocabulary))
    documents: list[np.ndarray] = []
    counts: Counter[str] = Counter()
    digest = hashlib.sha256(str(FORMAT).encode())
    db = sqlite3.connect(out / "pages.sqlite", isolation_level=None)
    db.execute("create table pages (row integer primary key, url text not null unique, title text not null, text text not null)")
    db.execute("begin")
    for row in (row for file in files for row in _rows(file)):
        page = _page(row)
        if page is None:
            counts["skipped"] += 1
        elif db.execute("insert or ignore into pages values (?, ?, ?, ?)", (len(documents), *page)).rowcount == 0:
            counts["repeated"] += 1
        else:
            for part in page:
                digest.update(f"{len(part)}:{part}".encode())
            documents.append(np.array(array("i", [vocabulary[word] for word in words(f"{page[1]}\n{page[2]}")]), dtype=np.int32))
    db.execute("commit")
    db.close()
    if not vocabulary:
        raise ToolsError(f"{files[0]}: no row has an http(s) url and a text: nothing to index")
    bm25: Any = importlib.import_module("bm25s")
    index = bm25.BM25(backend="numpy", auto_compile=False)
    index.index((documents, dict(vocabulary)), show_progress=False)
    index.save(out / "bm25", show_progress=False)
    about = {"format": FORMAT, "digest": digest.hexdigest(), "pages": len(documents)}
    (out / "corpus.json").write_text(json.dumps(about), encoding="utf-8")
    return Built(len(documents), counts["skipped"], counts["repeated"], len(vocabulary))


def _rows(file: Path) -> Iterator[object]:
    """The rows of a file, None for one that is no JSON. Raises ToolsError when it is no such file at all."""
    if file.suffix == ".jsonl":
        with file.open("rb") as lines:
            for line in lines:
                if line.strip():
                    yield _json(line)
        return
    try:
        table = pq.ParquetFile(file)
        columns = [name for name in ("url", "title", "text") if name in table.schema_arrow.names]
        if not {"url", "text"} <= set(columns):
            raise ToolsError(f"{file} has columns {', '.join(table.schema_arrow.names)}: url and text are needed, title is welcome")
        for batch in table.iter_batches(_BATCH, columns=columns):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise ToolsError(f"{file} is no parquet file, or a broken one ({type(error).__name__})") from None


def _json(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _page(row: object) -> tuple[str, str, str] | None:
    """URL, title and text of a row, cleaned; None for a row without URL or text."""
    if not isinstance(row, dict):
        return None
    url, text = web_url(row.get("url")), clean_text(row.get("text"), TEXT_CHARS)
    return (url, clean_line(row.get("title"), TITLE_CHARS), text) if url and text else None


class _Corpus(Provider):
    needs_url = False
    needs_path = True
    remote = False
    key_required = False

    def __init__(self, config: ProviderConfig, http: Http, key: str) -> None:
        super().__init__(config, http, key)
        self._folder = Path(config.path)
        self.identity = f"{config.kind}|{_about(self._folder)['digest']}"
        location = f"{(self._folder / 'pages.sqlite').resolve().as_uri()}?mode=ro&immutable=1"
        self._db = sqlite3.connect(location, uri=True, check_same_thread=False)


class Bm25(_Corpus):
    """Pages by the words of a query, the best first. `path` is a folder that `build` made."""

    def __init__(self, config: ProviderConfig, http: Http, key: str) -> None:
        super().__init__(config, http, key)
        bm25: Any = importlib.import_module("bm25s")
        try:
            self._index = bm25.BM25.load(self._folder / "bm25", mmap=True, show_progress=False)
        except (OSError, ValueError, KeyError) as error:
            raise ToolsError(f"{self._folder}: its index does not load ({type(error).__name__}): build it anew") from None

    async def search(self, query: str, limit: int) -> list[Lead]:
        return await asyncio.to_thread(self._search, query, limit)

    def _search(self, query: str, limit: int) -> list[Lead]:
        vocabulary: dict[str, int] = self._index.vocab_dict
        asked = sorted({vocabulary[word] for word in words(query[:QUERY_CHARS]) if word in vocabulary})
        scores = self._index.get_scores_from_ids(asked) if asked else np.zeros(0, np.float32)
        matching = np.flatnonzero(scores > 0)
        if not len(matching):
            raise ProviderError(ToolFailure.NO_RESULTS, "no page shares a word with the query")
        if len(matching) > limit:
            worst = np.partition(scores[matching], -limit)[-limit]
            matching = matching[scores[matching] >= worst]
        best = matching[np.lexsort((matching, -scores[matching]))][:limit]  # among equals the earlier page
        return [self._lead(int(row)) for row in best]

    def _lead(self, row: int) -> Lead:
        url, title = self._db.execute("select url, title from pages where row = ?", (row,)).fetchone()
        return Lead(title, url)


class CorpusReader(_Corpus):
    """The page of a URL, from a folder that `build` made. Asks nothing of the network."""

    async def read(self, url: str) -> Page:
        found = self._db.execute("select title, text from pages where url = ?", (url,)).fetchone()
        if found is None:
            raise ProviderError(ToolFailure.NO_RESULTS, f"{public(url)}: not among the pages in {self._folder}")
        return Page(found[0], found[1])


def _about(folder: Path) -> dict[str, Any]:
    """What `build` wrote of the index. Raises ToolsError when `folder` is none, or one of another format."""
    try:
        about = json.loads((folder / "corpus.json").read_bytes())
        if about["format"] == FORMAT:
            return about
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ToolsError(
        f"{folder} is no index of pages of this version: make one with `python -m mmsr_ray.tools index-pages PAGES --out FOLDER`"
    )
