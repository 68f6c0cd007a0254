"""Folders that are whole or not there: files that know their checksum, a manifest written last, a swap of names.

Promise: a folder whose manifest has no complaint holds every byte that was written to it. A folder that is replaced is
there at every moment, as the old one or the new one, also after a kill (`recover_folder` ends a swap that was cut short).
Needs neither torch nor Ray.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

MANIFEST = "manifest.json"
PARTIAL = ".partial"  # ends the name of a folder that is being written
PIECE = 16 << 20  # bytes read at a time to check a file
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, or the limit on a file's size


class NotWritten(RuntimeError):
    """A folder could not be written, and one sentence says why. Nothing of it is left; what had its name before stays."""


@dataclass(frozen=True, slots=True)
class Written:
    """One file of a folder: bytes and CRC-32."""

    size: int
    crc32: int


@dataclass
class Report:
    """What one process wrote to a folder, by relative name; `error` is the first thing that went wrong, "" for none."""

    files: dict[str, Written]
    error: str = ""
    full: bool = False

    @property
    def bytes(self) -> int:
        """What was written, or would have been: after an error the rest is only counted."""
        return sum(file.size for file in self.files.values())


def not_written(folder: Path, report: Report) -> NotWritten:
    """The error that says why, what was needed, and what is free."""
    said = f"{folder} was not written: {report.error}"
    if report.full:
        said += f"; it needs {size(report.bytes)} and {size(free_bytes(folder))} are free there: make room"
    return NotWritten(said)


def free_bytes(path: Path) -> int:
    """On the disk of `path`, or of the nearest folder above it that exists."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def size(count: int) -> str:
    """Bytes in words: 1.5 GiB."""
    value, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


class DurableFile:
    """A file to write to, once, from start to end. After the first error it only counts, so that the size needed is known."""

    def __init__(self, path: Path) -> None:
        self.size = self.crc32 = 0
        self.error: OSError | None = None
        self._file: BinaryIO | None = None
        try:
            self._file = path.open("wb")
        except OSError as error:
            self.error = error

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data)
        self.size += view.nbytes
        if self._file is not None and self.error is None:
            self.crc32 = zlib.crc32(view, self.crc32)
            try:
                self._file.write(view)
            except OSError as error:
                self.error = error
        return view.nbytes

    def flush(self) -> None:
        pass  # `close` does; torch flushes after every tensor

    def close(self) -> None:
        """To the disk itself: where space is given out late, this is where it turns out to be missing."""
        if self._file is None:
            return
        try:
            if self.error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as error:
            self.error = error
        finally:
            with suppress(OSError):  # what is still buffered cannot be written either
                self._file.close()


class FolderWriter:
    """Files below `root`, and the report on them. The first error makes everything after it a count."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.report = Report({})

    def write(self, path: Path, content: bytes) -> None:
        file = DurableFile(path)
        file.write(content)
        self.close(path, file)

    def close(self, path: Path, file: DurableFile) -> None:
        """Take a finished file into the report."""
        file.close()
        self.report.files[path.relative_to(self._root).as_posix()] = Written(file.size, file.crc32)
        if file.error is not None:
            self.note(file.error)

    def make_folder(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.note(error)

    def note(self, error: OSError) -> None:
        if not self.report.error:
            self.report.error, self.report.full = error.strerror or str(error), error.errno in FULL


def merged(reports: Iterable[Report]) -> Report:
    """Of several processes that wrote to one folder."""
    whole = Report({})
    for report in reports:
        whole.files |= report.files
        if report.error and not whole.error:
            whole.error, whole.full = report.error, report.full
    return whole


# ---------------------------------------------------------------------------------------------------- manifest


def write_manifest(folder: Path, files: Mapping[str, Written]) -> None:
    """The last file of a folder. Raises OSError."""
    content = json.dumps({"files": {name: asdict(files[name]) for name in sorted(files)}}, indent=1)
    with (folder / MANIFEST).open("w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> dict[str, Written]:
    """Raises OSError or ValueError where there is none, or none that can be read."""
    entries = json.loads((folder / MANIFEST).read_text())["files"]
    return {name: Written(**entry) for name, entry in entries.items()}


def folder_bytes(folder: Path) -> int:
    """By its manifest; 0 where it has none."""
    try:
        return sum(file.size for file in read_manifest(folder).values())
    except (OSError, ValueError, KeyError, TypeError):  # not this function's to complain
        return 0


def complaint(folder: Path) -> str:
    """Why the folder is not whole, in one sentence; "" when every file of its manifest is there in its full size."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    try:
        files = read_manifest(folder)
    except OSError:
        return f"{folder} has no {MANIFEST}, its last file: it was cut short"
    except (ValueError, KeyError, TypeError):
        return f"{folder / MANIFEST} is damaged"
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            return f"{folder} is cut short: {name} is missing"
        if path.stat().st_size != wanted.size:
            return f"{folder} is cut short: {name} has {path.stat().st_size:,} of its {wanted.size:,} bytes"
    return ""


def damage(folder: Path, names: Iterable[str]) -> str:
    """Which of these files of a whole folder has not the content of its manifest, in one sentence; "" for none."""
    files = read_manifest(folder)
    for name in names:
        if _crc32(folder / name) != files[name].crc32:
            return f"{folder} is damaged: {name} has not the checksum of its {MANIFEST}"
    return ""


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            value = zlib.crc32(piece, value)
    return value


# ---------------------------------------------------------------------------------------------------- names


def replace_folder(new: Path, final: Path) -> None:
    """`new` becomes `final`; what bore that name is removed. Raises OSError."""
    recover_folder(final)
    old = _old(final)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(final: Path) -> None:
    """End a `replace_folder` that was cut short: before the new name was given, the old folder takes its name again."""
    old = _old(final)
    if old.exists() and not final.exists():
        old.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _old(final: Path) -> Path:
    return final.with_name(final.name + ".old")
