"""SQLite files that survive kills: all or nothing inside a transaction, and one process at a time where a file is for one.

Promise: what is written inside `transaction` is on disk when the block ends, or none of it is, and the error that ended it is the one
that is seen. A file of `open_alone` is held by a lock that ends with the process, without shared memory, so that a network file
system will do. Connections have no transactions of their own (`isolation_level=None`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

BUSY_SECONDS = 10.0  # an earlier submission may be ending


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Gives `db`. The writer's lock from the start. Raises sqlite3.Error, and what is raised inside."""
    db.execute("begin immediate")
    try:
        yield db
        db.execute("commit")
    except BaseException:
        if db.in_transaction:  # SQLite ends it itself where the disk is full
            db.execute("rollback")
        raise


def open_alone(path: Path, tables: Iterable[str]) -> sqlite3.Connection:
    """The file, made with its folder where there is none, for this process alone. Not for several threads. Raises sqlite3.Error, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        for pragma in ("locking_mode = exclusive", "journal_mode = wal", "synchronous = full"):
            db.execute(f"pragma {pragma}")
        with transaction(db):
            for table in tables:
                db.execute(table)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def told_as(kind: type[Exception], path: Path, kept: str) -> Iterator[None]:
    """Errors of SQLite and of the disk as a `kind` of one sentence; `kept` says what the file keeps, in the plural."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise kind(f"{path}: {_explained(error, kept)}") from error


def _explained(error: Exception, kept: str) -> str:
    match getattr(error, "sqlite_errorcode", None):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "another process holds it, perhaps an earlier submission of this run: wait until it has ended, or stop it"
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return f"it is no sound database ({error}): move it away, and every question is asked anew"
    return f"{kept} cannot be kept there ({error}): make room, or make it writable, and submit again; what was kept until now stays"
