"""Pictures by (file, row) out of parquet, in any order, without holding a set in memory.

Parquet can only be read a row group at a time, and released sets put gigabytes of pictures in one. So the first touch of
a file copies its image column, streaming, into an uncompressed Arrow file under the temporary folder, which is then
memory-mapped: one picture costs one page-in. The copy is keyed by path, size and time of change, is made whole or not at
all, and is shared by every process of the machine and by the next run.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from mmsr_ray.data.pictures import picture_bytes
from mmsr_ray.data.schema import DataError

CHUNK = 32  # rows of one batch of the copy


class ImageStore:
    """Not shared between processes; each opens its own maps. Keeps a map open per file. `column` holds the pictures."""

    def __init__(self, folder: str | Path | None = None, column: str = "images") -> None:
        self._column = column
        self._folder = Path(folder) if folder else Path(tempfile.gettempdir()) / f"mmsr-images-{os.getuid()}"
        self._columns: dict[str, pa.ChunkedArray] = {}

    def load(self, file: str, row: int) -> bytes:
        """Encoded bytes of the row's one picture. Raises BadRow where there is none, DataError where the file is gone."""
        return picture_bytes(self.cell(file, row), file)

    def cell(self, file: str, row: int) -> Any:
        """What the column holds there, as a Python value."""
        if file not in self._columns:
            self._columns[file] = self._open(file)
        return self._columns[file][row].as_py()

    def _open(self, file: str) -> pa.ChunkedArray:
        suffix = "" if self._column == "images" else "-" + hashlib.sha256(self._column.encode()).hexdigest()[:8]
        copy = self._folder / f"{_identity(file)}{suffix}.arrow"
        if not copy.exists():
            self._copy(file, copy)
        return pa.ipc.open_file(pa.memory_map(str(copy))).read_all().column(self._column)

    def _copy(self, file: str, copy: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, partial = tempfile.mkstemp(dir=self._folder, suffix=".partial")
        os.close(handle)
        try:
            with fsspec.open(file, "rb") as source:
                parquet = pq.ParquetFile(source, pre_buffer=False)
                schema = pa.schema([parquet.schema_arrow.field(self._column)])
                with pa.OSFile(partial, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                    for batch in parquet.iter_batches(batch_size=CHUNK, columns=[self._column]):
                        writer.write_batch(batch)
            os.replace(partial, copy)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"the pictures of {file} cannot be read ({error}): write the file again, or free space in {self._folder}"
            ) from error
        finally:
            Path(partial).unlink(missing_ok=True)


def _identity(file: str) -> str:
    """Changes whenever the file may have changed. Raises DataError where it is gone."""
    try:
        filesystem, path = fsspec.core.url_to_fs(file)
        info: dict[str, Any] = filesystem.info(path)
    except OSError as error:
        raise DataError(f"{file} is gone: put it back or start with another data set") from error
    stamp = info.get("mtime") or info.get("LastModified") or info.get("ETag") or info.get("blob_id") or ""
    return hashlib.sha256(f"{file}|{info.get('size')}|{stamp}|{info.get('ino', '')}".encode()).hexdigest()[:32]
