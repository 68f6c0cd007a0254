"""Files of rows, parquet or JSON, read without their pictures; a picture is fetched when asked for.

Promise: every row of a file comes out, in order, once; one that is no row at all comes out as None, so that whoever counts
can count it. A file that cannot be read raises `DataError` with the remedy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from mmsr_ray.data.images import ImageStore
from mmsr_ray.data.pictures import picture_bytes
from mmsr_ray.data.schema import DataError

JSON = (".jsonl", ".ndjson", ".json")
ENDINGS = (".parquet", *JSON)
WRAPPERS = ("data", "samples", "qa", "rows")  # keys under which a JSON object may hold the list of rows
POINTER = b"version https://git-lfs"
CELL_ROWS = 1024  # turned into Python values at once


class Table(Protocol):
    file: str
    columns: tuple[str, ...]

    def rows(self, columns: Collection[str], picture: str) -> Iterator[tuple[dict[str, Any] | None, bool]]:
        """(cells of `columns`, whether the cell of the column `picture` holds anything) of each row."""
        ...

    def picture(self, row: int, column: str) -> Any:
        """The cell of a column of pictures, as a Python value."""
        ...


def open_table(file: str) -> Table:
    """A file whose name ends in one of `ENDINGS`; a path or any URL that fsspec opens. Raises DataError."""
    try:
        return JsonTable(file) if file.endswith(JSON) else ParquetTable(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        if _is_pointer(file):
            raise DataError(f"{file} is only a Git LFS pointer to the data: fetch it with git lfs pull") from error
        raise DataError(f"{file} cannot be read ({_first_line(error)}): write it again as parquet, JSONL or JSON") from error


class Pictures:
    """Pictures of rows by where they lie. Keeps files open; not shared between processes."""

    def __init__(self) -> None:
        self._tables: dict[str, Table] = {}

    def load(self, file: str, row: int, column: str, folders: Sequence[str] = ()) -> bytes:
        """Encoded bytes. Raises BadRow where there is no picture, DataError where the file is gone."""
        if file not in self._tables:
            self._tables[file] = open_table(file)
        return picture_bytes(self._tables[file].picture(row, column), file, folders)


class ParquetTable:
    def __init__(self, file: str) -> None:
        self.file = file
        self._stores: dict[str, ImageStore] = {}
        with fsspec.open(file, "rb") as handle:
            parquet = pq.ParquetFile(handle)
            self.columns = tuple(parquet.schema_arrow.names)
            self._leaves = [parquet.schema.column(i).path for i in range(len(parquet.schema))]

    def rows(self, columns: Collection[str], picture: str) -> Iterator[tuple[dict[str, Any] | None, bool]]:
        leaf = self._small_leaf(picture)
        try:
            with fsspec.open(self.file, "rb") as handle:
                table = pq.ParquetFile(handle).read(columns=[*columns, *([leaf] if leaf else [])])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.file} is damaged ({_first_line(error)}): fetch or write it again") from error
        for batch in table.to_batches(max_chunksize=CELL_ROWS):
            for row in batch.to_pylist():
                yield {name: row[name] for name in columns}, not leaf or row[picture] not in (None, [])

    def _small_leaf(self, column: str) -> str | None:
        """A part of a column of {bytes, path} that says which cells are null without their bytes being read; None where there is none."""
        return next((leaf for leaf in self._leaves if leaf.startswith(f"{column}.") and leaf.endswith(".path")), None)

    def picture(self, row: int, column: str) -> Any:
        return self._stores.setdefault(column, ImageStore(column=column)).cell(self.file, row)


class JsonTable:
    """Lines of objects, or one list of them, alone or under one of `WRAPPERS`. Held in memory."""

    def __init__(self, file: str) -> None:
        self.file = file
        with fsspec.open(file, "rt", encoding="utf-8-sig") as handle:
            text: str = handle.read()  # type: ignore[union-attr]
        self._rows = _listed(text) if file.endswith(".json") else [_line(line) for line in text.splitlines() if line.strip()]
        names = [name for row in self._rows if row is not None for name in row]
        self.columns = tuple(dict.fromkeys(names))

    def rows(self, columns: Collection[str], picture: str) -> Iterator[tuple[dict[str, Any] | None, bool]]:
        for row in self._rows:
            if row is None:
                yield None, False
            else:
                yield {name: row.get(name) for name in columns}, row.get(picture) not in (None, [], "")

    def picture(self, row: int, column: str) -> Any:
        found = self._rows[row]
        return None if found is None else found.get(column)


def _listed(text: str) -> list[dict[str, Any] | None]:
    content = json.loads(text)
    if isinstance(content, dict):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), list)), None)
    if not isinstance(content, list):
        raise ValueError("it is no list of rows")
    return [row if isinstance(row, dict) else None for row in content]


def _line(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def _is_pointer(file: str) -> bool:
    if not os.path.isfile(file):
        return False
    with open(file, "rb") as handle:
        return handle.read(len(POINTER)) == POINTER


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
