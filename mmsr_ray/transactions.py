"""All or nothing, in a SQLite database whose connection has no transactions of its own (`isolation_level=None`).

Promise: what is written inside is on disk when the block ends, or none of it is, and the error that ended it is the one that is seen.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager


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
