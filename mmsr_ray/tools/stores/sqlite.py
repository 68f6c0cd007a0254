"""One SQLite file, shared by the processes of one machine (WAL mode does not work on network file systems).

Promise: what `put_all` returned from survives a kill at any point. The file stays within `max_bytes`: each write first
makes a little room, what expired and what was not used for longest leaves first. A file that is not sound is left where it is
and a new one is begun beside it, at the start or in the middle of a run, by all processes alike. Reads and writes happen
on two threads, so that neither blocks the event loop nor waits for the other.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mmsr_ray.tools.limits import Clock
from mmsr_ray.tools.stores.base import Entry, Item, StoreError
from mmsr_ray.transactions import transaction

logger = logging.getLogger(__name__)
T = TypeVar("T")

_START_SECONDS, _BUSY_SECONDS = 10, 1  # for another process's write
_BATCH = 16  # entries that one write removes beyond two for each that it adds, of each sort
_USED = 1_000  # reads that are remembered between two writes
_UNSOUND = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SCHEMA = (
    "create table if not exists entries (layer text, key text, value blob not null, found integer not null,"
    " expires real not null, used real not null, primary key (layer, key))",
    "create index if not exists entries_used on entries (used)",
    "create index if not exists entries_expires on entries (expires)",
)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    reader: sqlite3.Connection
    writer: sqlite3.Connection
    page_bytes: int


class SqliteStore:
    """`max_bytes` is about the file's size; 0: no bound. "Used" means read from or written to the file.

    Raises sqlite3.Error or OSError when there can be no file at `path`.
    """

    def __init__(self, path: Path, max_bytes: int = 0, clock: Clock = time.time) -> None:
        self._path, self._max_bytes, self._clock = path, max_bytes, clock
        self._used: dict[tuple[str, str], float] = {}  # read since the last write
        self._reading, self._writing = (ThreadPoolExecutor(1, f"cache-{what}") for what in ("read", "write"))
        self._replacing = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._number = 0  # of unsound files before this one
        while self._named(self._number + 1).exists():
            self._number += 1
        self._file = self._open_sound()

    def _named(self, number: int) -> Path:
        return self._path.with_suffix(f".{number}{self._path.suffix}") if number else self._path

    def _open_sound(self) -> _File:
        """The first file from `_number` on that is a database. A name is never used again: somebody may have it open."""
        while True:
            path = self._named(self._number)
            try:
                return _open(path)
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode not in _UNSOUND:
                    raise  # locked or not writable: another file would fare no better
                self._number += 1
                logger.warning("cache %s is broken (%s) and may be deleted: going on with %s", path, error, self._named(self._number).name)

    async def get_all(self, keys: Sequence[tuple[str, str]]) -> list[Entry | None]:
        return await self._on(self._reading, lambda file: [self._get(file, layer, key) for layer, key in keys])

    async def put_all(self, items: Sequence[Item]) -> None:
        await self._on(self._writing, lambda file: self._put_all(file, items))

    async def close(self) -> None:
        """Ends both threads."""
        await self._on(self._reading, lambda file: file.reader.close())
        await self._on(self._writing, lambda file: file.writer.close())
        self._reading.shutdown(wait=False)
        self._writing.shutdown(wait=False)

    async def problem(self) -> str:
        return ""  # a file that cannot be had has raised at the start

    async def _on(self, thread: ThreadPoolExecutor, work: Callable[[_File], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, self._do, work)

    def _do(self, work: Callable[[_File], T]) -> T:
        file = self._file
        try:
            return work(file)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) in _UNSOUND:
                self._replace(file)
            raise StoreError(f"file {file.path}: {error}") from None

    def _replace(self, broken: _File) -> None:
        with self._replacing:
            if self._file is broken:  # else the other thread was first
                self._number += 1
                logger.warning("cache %s broke and may be deleted: going on with %s", broken.path, self._named(self._number).name)
                self._file = self._open_sound()

    def _get(self, file: _File, layer: str, key: str) -> Entry | None:
        row = file.reader.execute("select value, expires, found from entries where layer = ? and key = ?", (layer, key)).fetchone()
        now = self._clock()
        if row is None or row[1] <= now:
            return None
        if len(self._used) < _USED:
            self._used[layer, key] = now
        return Entry(row[0], row[1], bool(row[2]))

    def _put_all(self, file: _File, items: Sequence[Item]) -> None:
        now, used, self._used = self._clock(), self._used, {}
        with transaction(file.writer) as db:
            db.executemany("update entries set used = ? where layer = ? and key = ?", [(when, *at) for at, when in list(used.items())])
            self._make_room(db, file.page_bytes, sum(len(entry.value) for _, _, entry in items), len(items), now)
            db.executemany(
                "insert or replace into entries values (?, ?, ?, ?, ?, ?)", [(*at, e.value, e.found, e.expires, now) for *at, e in items]
            )

    def _make_room(self, db: sqlite3.Connection, page_bytes: int, needed: int, new: int, now: float) -> None:
        """For `needed` bytes in `new` entries. A few entries leave only: a long deletion would keep other processes waiting."""
        most = _BATCH + 2 * new
        db.execute("delete from entries where rowid in (select rowid from entries where expires <= ? limit ?)", (now, most))
        if not self._max_bytes:
            return
        for _ in range(most):
            pages, free = (db.execute(f"pragma {what}").fetchone()[0] for what in ("page_count", "freelist_count"))
            if (pages - free) * page_bytes + needed <= self._max_bytes:
                return
            db.execute("delete from entries where rowid in (select rowid from entries order by used limit 1)")


def _open(path: Path) -> _File:
    reader, writer = _connect(path), _connect(path)
    for statement in _SCHEMA:
        writer.execute(statement)
    for db in (reader, writer):
        db.execute(f"pragma busy_timeout = {_BUSY_SECONDS * 1000}")
    return _File(path, reader, writer, writer.execute("pragma page_size").fetchone()[0])


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=_START_SECONDS, check_same_thread=False)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = normal")  # a power cut may lose the last entries, a killed process none
    return db
