"""image_search.kind=fvqa_cache: the image searches that were released with FVQA, answered from a file. Spec §2.4.

Promise: a picture is known by the sha256 of its bytes as the data set has them, so a lookup needs neither ids nor the
web; a picture that is not in the file is NO_RESULTS. Thumbnails stay on disk until they are asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmsr_ray.config import DataConfig, ProviderConfig
from mmsr_ray.data.images import ImageStore
from mmsr_ray.data.reader import read_index
from mmsr_ray.data.schema import BadRow
from mmsr_ray.tools.errors import ProviderError, ToolsError
from mmsr_ray.tools.foreign import TITLE_CHARS, clean_line, web_url
from mmsr_ray.tools.http import Http
from mmsr_ray.tools.providers.base import Lead, Photo, Provider
from mmsr_ray.tools.providers.encoded import inline
from mmsr_ray.tools.providers.pickled_pictures import PickledPicture, PickleRefused, load
from mmsr_ray.types import ToolFailure

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("sha", pa.string()),  # hex sha256 of the user's picture
        ("data_id", pa.string()),
        ("hits", pa.list_(pa.struct([("title", pa.string()), ("url", pa.string()), ("jpeg", pa.binary())]))),  # url or jpeg
    ]
)
_ROW_GROUP = 16  # searches; one lookup reads one group
_TITLES, _PICTURES = "tool_returned_web_title_list", "tool_returned_images_urls"

Hit = tuple[str, str, bytes]  # title, URL of the thumbnail or "", the thumbnail as JPEG or b""


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of a released cache."""

    pictures: int  # searches written, one per picture
    hits: int
    repeated: int  # entries whose picture another entry has already: the first one counts
    entries_without_row: int  # entries of the pickle that no row of the data sets has
    rows_without_entry: int
    hits_dropped: int  # without title or usable thumbnail


class FvqaCache(Provider):
    """`config.path` is the parquet file that `convert` wrote, or a folder of several."""

    needs_url = False
    needs_path = True
    remote = False
    key_required = False

    def __init__(self, config: ProviderConfig, http: Http, key: str) -> None:
        """Reads the column of hashes. Raises ToolsError when the file is not one of ours."""
        super().__init__(config, http, key)
        root = Path(config.path)
        files = sorted(root.glob("*.parquet")) if root.is_dir() else [root]
        if not files:
            raise ToolsError(f"tools.image_search.path={config.path!r} has no parquet file: convert the released cache into it")
        self._files = [_open(file) for file in files]
        self._places = dict(reversed([place for number, file in enumerate(self._files) for place in _places(number, file)]))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fvqa-cache")  # a ParquetFile serves one thread at a time
        stamps = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
        self.identity = f"{config.kind}|{config.path}|{'|'.join(stamps)}"

    async def search(self, photo: Photo) -> list[Lead]:
        if photo.sha not in self._places:
            raise ProviderError(ToolFailure.NO_RESULTS, "the picture is not in the released cache")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._leads, *self._places[photo.sha])

    def _leads(self, file: int, group: int, row: int) -> list[Lead]:
        try:
            hits = self._files[file].read_row_group(group, columns=["hits"]).column("hits")[row].as_py()
        except (pa.ArrowException, OSError) as error:
            raise ProviderError(ToolFailure.UNAVAILABLE, f"{self.config.path} cannot be read ({type(error).__name__})") from None
        return [Lead(hit["title"], "", hit["url"] or inline(hit["jpeg"])) for hit in hits]


def convert(pickle: Path, datasets: list[Path], out: Path) -> Converted:
    """Write the searches of a released pickle as parquet, keyed by the pictures of `datasets` (FVQA parquet, by data_id).

    One picture of the data sets is in memory at a time. `out` appears whole or not at all. Raises ToolsError for a
    pickle that is not such a cache or that shares no data_id with the data sets, DataError for an unusable data set.
    """
    entries = _entries(pickle)
    unmatched, shas = set(entries), set[str]()
    hits = dropped = repeated = rows = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    try:
        with pq.ParquetWriter(partial, SCHEMA, compression="none") as writer:
            chunk: list[dict[str, Any]] = []
            for data_id, picture in _pictures(datasets):
                rows += 1
                if data_id not in unmatched:
                    continue
                unmatched.remove(data_id)
                sha = hashlib.sha256(picture).hexdigest()
                if sha in shas:
                    repeated += 1
                    continue
                shas.add(sha)
                found, lost = _hits(data_id, entries[data_id])
                hits, dropped = hits + len(found), dropped + lost
                chunk.append({"sha": sha, "data_id": data_id, "hits": [dict(zip(("title", "url", "jpeg"), h, strict=True)) for h in found]})
                if len(chunk) == _ROW_GROUP:
                    writer.write_table(pa.Table.from_pylist(chunk, SCHEMA))
                    logger.info("%d of %d searches written", len(shas), len(entries))
                    chunk = []
            if chunk:
                writer.write_table(pa.Table.from_pylist(chunk, SCHEMA))
        if not shas:
            raise ToolsError(f"no data_id of {pickle} is in {', '.join(map(str, datasets))}: name the data set that belongs to this cache")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    matched = len(entries) - len(unmatched)
    return Converted(len(shas), hits, repeated, len(unmatched), rows - matched, dropped)


def _entries(path: Path) -> dict[str, Any]:
    try:
        entries = load(path)
    except (PickleRefused, OSError) as error:
        raise ToolsError(f"the released cache cannot be read: {error}") from None
    if not isinstance(entries, dict) or not entries or not all(isinstance(key, str) for key in entries):
        raise ToolsError(f"{path} holds no searches by data_id: name the pickle that was released with FVQA")
    return entries


def _pictures(datasets: list[Path]) -> Iterator[tuple[str, bytes]]:
    """(data_id, the bytes that `Sample.image` has) of every usable row."""
    config, store = DataConfig(), ImageStore()
    for path in datasets:
        for row in read_index(str(path), config).rows:
            try:
                yield row.fields.uid, store.load(row.file, row.row)
            except BadRow as bad:
                logger.warning("row %s of %s has no usable picture (%s)", row.fields.uid, path, bad.kind)


def _hits(data_id: str, entry: Any) -> tuple[list[Hit], int]:
    """Hits with a title and a thumbnail, in order, and how many had none."""
    if not isinstance(entry, dict) or not isinstance(entry.get(_TITLES), list) or not isinstance(entry.get(_PICTURES), list):
        raise ToolsError(f"entry {data_id!r} of the released cache lacks the lists {_TITLES} and {_PICTURES}: name the pickle as released")
    found: list[Hit] = []
    for raw, picture in zip(entry[_TITLES], entry[_PICTURES], strict=False):
        title, url, jpeg = clean_line(raw, TITLE_CHARS), web_url(picture), b""
        if isinstance(picture, PickledPicture):
            try:
                jpeg = picture.jpeg()
            except PickleRefused as refusal:
                logger.warning("a thumbnail of %s is dropped: %s", data_id, refusal)
        if title and (url or jpeg):
            found.append((title, url, jpeg))
    return found, max(len(entry[_TITLES]), len(entry[_PICTURES])) - len(found)


def _open(file: Path) -> pq.ParquetFile:
    try:
        parquet = pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise ToolsError(f"tools.image_search.path: {file} is no parquet file ({error}): convert the released cache first") from None
    if parquet.schema_arrow.names != SCHEMA.names:
        raise ToolsError(f"tools.image_search.path: {file} is not a converted cache: convert the released pickle first")
    return parquet


def _places(number: int, parquet: pq.ParquetFile) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """(sha, (file, row group, row in it))"""
    for group in range(parquet.num_row_groups):
        for row, sha in enumerate(parquet.read_row_group(group, columns=["sha"]).column("sha").to_pylist()):
            yield sha, (number, group, row)
