"""image_search.kind=image_index: a folder of pictures, searched by the embeddings of a vision model. Needs no web.

Promise: the nearest pictures by cosine, the nearest first; the index is self-contained (vectors, titles, addresses,
thumbnails) and lies on disk, mapped, not loaded. An index asked with another model than the one that built it refuses
to start.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import importlib
import io
import json
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from PIL import Image

from mmsr_ray.config import ProviderConfig
from mmsr_ray.tools import foreign
from mmsr_ray.tools.errors import ProviderError, ToolsError
from mmsr_ray.tools.foreign import TITLE_CHARS, clean_line, web_url
from mmsr_ray.tools.http import Http
from mmsr_ray.tools.providers.base import Lead, Photo, Provider
from mmsr_ray.tools.providers.embedder import Embedder
from mmsr_ray.tools.providers.encoded import inline
from mmsr_ray.types import ToolFailure

logger = logging.getLogger(__name__)

SCHEMA = pa.schema([("file", pa.string()), ("title", pa.string()), ("url", pa.string()), ("thumbnail", pa.binary())])
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
_VECTORS, _ROWS, _ABOUT = "vectors.usearch", "rows.arrow", "index.json"
_LEADS = 20  # of one search
_EXACT = 50_000  # pictures up to which all are compared: a few milliseconds, and the same answer every time
_DECLARED_PIXELS = 100_000_000  # photographs are larger than thumbnails from the web
_SEEN_PIXELS = 768 * 768  # a model looks at no more, so larger pictures are scaled down while they are decoded
_THUMBNAIL_PIXELS = 300 * 300
_SAME = 0.99  # cosine of the same picture under the same model


@dataclass(frozen=True, slots=True)
class Built:
    """`skipped` are the files that are no usable picture, each with the reason."""

    pictures: int
    skipped: tuple[str, ...]


class ImageIndex(Provider):
    """`config.path` is the folder that `build` wrote, `config.model` the model that built it ("": as the index says)."""

    needs_url = False
    needs_path = True
    remote = False
    key_required = False

    def __init__(self, config: ProviderConfig, http: Http, key: str) -> None:
        """Loads the model. Raises ToolsError for a folder that is no index, or a model that did not build it."""
        super().__init__(config, http, key)
        folder = Path(config.path)
        try:
            about = json.loads((folder / _ABOUT).read_text())
            self._vectors = _usearch().Index.restore(str(folder / _VECTORS), view=True)
            self._rows = pa.ipc.open_file(pa.memory_map(str(folder / _ROWS))).read_all()
        except (OSError, ValueError, RuntimeError) as error:
            raise ToolsError(f"tools.image_search.path={config.path!r} is no image index ({error}): build one first") from None
        self._embed = Embedder(config.model or about["model"])
        probe = self._embed([_probe()])[0]
        if len(probe) != about["dimensions"] or float(probe @ np.asarray(about["probe"], np.float32)) < _SAME:
            raise ToolsError(
                f"the index {config.path!r} was built by {about['model']!r}: set tools.image_search.model to that, or build it again"
            )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="image-index")  # one forward pass at a time uses all cores
        self.identity = f"{config.kind}|{config.path}|{about['sha']}"

    async def search(self, photo: Photo) -> list[Lead]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._nearest, photo.data)

    def _nearest(self, data: bytes) -> list[Lead]:
        try:
            seen = foreign.thumbnail(data, _SEEN_PIXELS, _DECLARED_PIXELS)
        except ProviderError as bad:
            raise ProviderError(ToolFailure.REJECTED, f"the picture cannot be searched for: {bad.detail}") from None
        vector = self._embed([_decoded(seen)])[0]
        matches = self._vectors.search(vector, min(_LEADS, len(self._vectors)), exact=len(self._vectors) <= _EXACT)
        rows = self._rows.take(pa.array(matches.keys.astype(np.int64))).to_pylist()
        return [Lead(row["title"], row["url"], inline(row["thumbnail"])) for row in rows]


def build(folder: Path, model: str, out: Path, batch: int = 32) -> Built:
    """Index every picture under `folder` into the folder `out`, replacing an index that is there.

    Titles and addresses come from `folder`/metadata.jsonl or metadata.csv (fields file, title, url), else the title from
    the file's name. Memory holds one batch of pictures and all vectors. Raises ToolsError.
    """
    if not folder.is_dir():
        raise ToolsError(f"there is no folder {folder}: name the folder of pictures")
    if out.exists() and not (out / _ABOUT).exists():
        raise ToolsError(f"{out} exists and is no image index: name another folder, or remove it")
    named, embed, skipped = _metadata(folder), Embedder(model), list[str]()
    probe = embed([_probe()])[0]
    vectors = _usearch().Index(ndim=len(probe), metric="cos", dtype="f32")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with pa.OSFile(str(partial / _ROWS), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            for rows, pictures in _batches(folder, named, batch, skipped):
                keys = np.arange(len(vectors), len(vectors) + len(rows), dtype=np.uint64)
                vectors.add(keys, embed(pictures))
                writer.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
                logger.info("%d pictures indexed", len(vectors))
        if not len(vectors):
            raise ToolsError(f"no usable picture under {folder} ({len(skipped)} skipped): name a folder of {', '.join(sorted(SUFFIXES))}")
        vectors.save(str(partial / _VECTORS))
        shas = [_sha(partial / name) for name in (_VECTORS, _ROWS)]
        about = {"model": model, "dimensions": len(probe), "pictures": len(vectors), "sha": "".join(shas), "probe": probe.tolist()}
        (partial / _ABOUT).write_text(json.dumps(about))
        shutil.rmtree(out, ignore_errors=True)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Built(len(vectors), tuple(skipped))


def _batches(
    folder: Path, named: dict[str, tuple[str, str]], size: int, skipped: list[str]
) -> Iterator[tuple[list[dict[str, Any]], list[Image.Image]]]:
    """Rows of the index and their pictures, `size` at a time, in the order of the files' names. Fills `skipped`."""
    rows: list[dict[str, Any]] = []
    pictures: list[Image.Image] = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()):
        file = path.relative_to(folder).as_posix()
        try:
            seen = foreign.thumbnail(path.read_bytes(), _SEEN_PIXELS, _DECLARED_PIXELS)
            thumbnail = foreign.thumbnail(seen, _THUMBNAIL_PIXELS)
        except (ProviderError, OSError) as bad:
            skipped.append(f"{file}: {bad.detail if isinstance(bad, ProviderError) else bad}")
            logger.warning("skipped %s", skipped[-1])
            continue
        title, url = named.get(file, ("", ""))
        rows.append({"file": file, "title": title or _title(path), "url": url, "thumbnail": thumbnail})
        pictures.append(_decoded(seen))
        if len(rows) == size:
            yield rows, pictures
            rows, pictures = [], []
    if rows:
        yield rows, pictures


def _metadata(folder: Path) -> dict[str, tuple[str, str]]:
    """file -> (title, url). Raises ToolsError naming the line that cannot be read."""
    lines, sheet = folder / "metadata.jsonl", folder / "metadata.csv"
    named: dict[str, tuple[str, str]] = {}
    if lines.exists():
        for number, line in enumerate(lines.read_text("utf-8").splitlines(), 1):
            try:
                row = json.loads(line) if line.strip() else None
            except ValueError:
                raise ToolsError(f"{lines}, line {number}, is not JSON: correct it") from None
            if row is not None:
                _name(named, row, f"{lines}, line {number},")
    elif sheet.exists():
        with sheet.open(encoding="utf-8-sig", newline="") as handle:
            for number, row in enumerate(csv.DictReader(handle), 2):
                _name(named, row, f"{sheet}, line {number},")
    return named


def _name(named: dict[str, tuple[str, str]], row: Any, where: str) -> None:
    if not isinstance(row, dict) or not isinstance(row.get("file"), str) or not row["file"]:
        raise ToolsError(f"{where} has no field 'file': give each line the fields file, title and url")
    named[row["file"]] = clean_line(row.get("title"), TITLE_CHARS), web_url(row.get("url"))


def _title(path: Path) -> str:
    """The file's name in words."""
    return clean_line(path.stem.replace("_", " ").replace("-", " "), TITLE_CHARS) or clean_line(path.name, TITLE_CHARS) or "picture"


def _decoded(data: bytes) -> Image.Image:
    """What `foreign.thumbnail` made, as pixels."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def _probe() -> Image.Image:
    """A fixed picture by whose vector an index knows its model."""
    ramp = np.linspace(0, 255, 256, dtype=np.uint8)
    red, green = np.meshgrid(ramp, ramp)
    return Image.fromarray(np.stack([red, green, red ^ green], axis=-1))


def _sha(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _usearch() -> Any:
    return importlib.import_module("usearch.index")  # only the image index wants it
