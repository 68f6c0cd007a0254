"""Reads FVQA parquet: a light index of every good row first, pixels only when asked for.

Promise: what comes out is usable. A bad row is counted, reported once by kind and skipped; a set that cannot be used at
all (no files, not parquet, a missing column, every row bad) raises one `DataError` that names the file and the remedy.
Paths may be a file, a folder (searched for *.parquet), a glob, or any URL that fsspec opens (s3://, gs://, hf://).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from mmsr_ray.config import DataConfig
from mmsr_ray.data.images import ImageStore
from mmsr_ray.data.schema import OPTIONAL, REQUIRED, BadRow, BadRows, DataError, Fields, check_image, parse_row
from mmsr_ray.types import Sample

LIGHT = tuple(name for name in (*REQUIRED, *OPTIONAL) if name != "images")


@dataclass(frozen=True, slots=True)
class IndexRow:
    """Where a good row lies: `row` counts from 0 over the whole file. `column` holds its picture, or the path of one that may also
    lie, by its name, in one of `folders` beside the file.
    """

    fields: Fields
    file: str
    row: int
    column: str = "images"
    folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Index:
    """The good rows of a set in file order, pictures not yet looked at, and the count of bad ones."""

    path: str
    rows: list[IndexRow]
    bad: BadRows


def rank(uid: str, seed: int, epoch: int) -> int:
    """Place of a prompt in an epoch's order: 63 bits that depend on (seed, epoch, uid) and on nothing else."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{uid}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def find_files(path: str, settings: str = "settings data.train and data.test") -> list[str]:
    """Parquet files of `path`, sorted by name. Raises DataError where there are none; its remedy names the `settings`."""
    remedy = f"name a parquet file, a folder of them or a glob ({settings})"
    try:
        filesystem, root = fsspec.core.url_to_fs(path)
        if filesystem.isdir(root):
            found = [name for name in filesystem.find(root) if name.endswith(".parquet")]
        elif any(mark in root for mark in "*?["):
            found = list(filesystem.glob(root))
        else:
            found = [root] if filesystem.exists(root) else []
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"cannot open {path} ({error}): {remedy}") from error
    if not found:
        raise DataError(f"there is no parquet file at {path}: {remedy}")
    return sorted(filesystem.unstrip_protocol(str(name)) if _remote(filesystem) else str(name) for name in found)


def read_index(path: str, config: DataConfig) -> Index:
    """Every good row of a set without its picture (image columns are not read). Logs bad rows once. Raises DataError."""
    files = find_files(path)
    prefix = os.path.commonpath([os.path.dirname(file) for file in files])
    index = Index(path, [], BadRows())
    seen: set[str] = set()
    for file in files:
        table = _light_columns(file)
        stem = os.path.splitext(os.path.relpath(file, prefix))[0]
        for number, row in enumerate(_rows(table)):
            uid = str(row.get("data_id") or f"{stem}_{number}")  # toy sets carry no ids
            try:
                if uid in seen:
                    raise BadRow("duplicate data_id")
                index.rows.append(IndexRow(parse_row(row, uid, config), file, number))
                seen.add(uid)
            except BadRow as bad:
                index.bad.add(bad.kind, uid)
    if not index.rows:
        raise every_row_bad(path, index.bad)
    index.bad.log(path)
    return index


def iter_samples(path: str, config: DataConfig, *, questions: int = 0, seed: int = 0) -> Iterator[Sample]:
    """Samples with pictures, one in memory at a time; a `questions` > 0 takes that many by `rank`, so always the same ones.

    In file order. Rows whose picture is bad are skipped and logged at the end; they are replaced by the next in rank.
    Raises DataError, also when no row has a good picture.
    """
    index = read_index(path, config)
    rows = sorted(index.rows, key=lambda row: (rank(row.fields.uid, seed, 0), row.fields.uid)) if questions else index.rows
    store, bad, good = ImageStore(), BadRows(), 0
    if questions:  # decoding twice is the price of a set that is chosen by rank and still comes in file order
        chosen = [row for row, image in _good(rows, store, config, bad, limit=questions) if image]
        order = {(row.file, row.row): place for place, row in enumerate(index.rows)}
        rows = sorted(chosen, key=lambda row: order[row.file, row.row])
    for row, image in _good(rows, store, config, bad):
        good += 1
        yield row.fields.sample(image)
    if not good:
        raise every_row_bad(path, bad)
    bad.log(path)


def read_samples(path: str, config: DataConfig, *, questions: int = 0, seed: int = 0) -> list[Sample]:
    """`iter_samples` as a list: for sets whose pictures fit in memory."""
    return list(iter_samples(path, config, questions=questions, seed=seed))


def every_row_bad(path: str, bad: BadRows) -> DataError:
    return DataError(f"no usable row in {path} ({bad or 'it has no rows'}): check that it has the FVQA schema of mmsr_ray/data/schema.py")


def _good(rows: list[IndexRow], store: ImageStore, config: DataConfig, bad: BadRows, limit: int = 0) -> Iterator[tuple[IndexRow, bytes]]:
    """The rows whose picture is good, with it, up to `limit`."""
    count = 0
    for row in rows:
        try:
            image = store.load(row.file, row.row)
            check_image(image, config)
        except BadRow as error:
            bad.add(error.kind, row.fields.uid)
            continue
        yield row, image
        count += 1
        if count == limit:
            return


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """As Python values, a few at a time: they take a hundred times the memory of the columns."""
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _light_columns(file: str) -> pa.Table:
    try:
        with fsspec.open(file, "rb") as handle:
            parquet = pq.ParquetFile(handle)
            names = set(parquet.schema_arrow.names)
            missing = [name for name in REQUIRED if name not in names]
            if missing:
                raise DataError(
                    f"{file} has no column {', '.join(missing)} (it has {', '.join(sorted(names))}): "
                    "bring it to the FVQA schema, which mmsr_ray.data.schema.write_fvqa writes"
                )
            return parquet.read(columns=[name for name in LIGHT if name in names])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as parquet ({_first_line(error)}): write it again or take it out of the set") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _remote(filesystem: Any) -> bool:
    protocol = filesystem.protocol
    return "file" not in ((protocol,) if isinstance(protocol, str) else protocol)
