"""What was rolled out, in one SQLite file: a question that has its rollouts is never asked again.

Promise: what `keep` returned from survives a kill at any moment. One process at a time has the file
(`transactions.open_alone`). A file belongs to one policy and its settings: another is refused with the difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from mmsr_ray.data.schema import DataError
from mmsr_ray.differences import Settings, differences, said
from mmsr_ray.transactions import open_alone, told_as, transaction

FILE = "rollouts.sqlite"
NONE_YET = "[]"
_TABLES = (
    "create table if not exists made_by (settings text not null)",
    "create table if not exists rollouts (key text primary key, attempts text not null)",
)


class Journal:
    """Attempts (`attempts.to_json`) by candidate key. Open one with `with`; not for several threads."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Makes the file where there is none. `settings`: all that rollouts follow from, as plain JSON values.

        Raises DataError for a file of other settings, where another process has it, or where it cannot be used.
        """
        self._path = path
        with self._clear():
            self._db = open_alone(path, _TABLES)
        try:
            self._belongs_to(json.loads(json.dumps(settings)))
        except BaseException:
            self._db.close()
            raise

    def _belongs_to(self, settings: Settings) -> None:
        with self._clear():
            row = self._db.execute("select settings from made_by").fetchone()
            if row is None:
                self._db.execute("insert into made_by values (?)", (json.dumps(settings),))
                return
        if found := differences(json.loads(row[0]), settings):
            raise DataError(f"{self._path} holds rollouts of another run: {said(found)}; set it as it was, or choose another run.name")

    def keep(self, attempts: Iterable[tuple[str, str]]) -> None:
        """(key, attempts), all or none of them, on disk when this returns; later ones of a key replace earlier ones. Raises DataError."""
        with self._clear(), transaction(self._db):
            self._db.executemany("insert or replace into rollouts values (?, ?)", attempts)

    def attempts(self, key: str) -> str:
        """NONE_YET for a question that was not asked."""
        with self._clear():
            row = self._db.execute("select attempts from rollouts where key = ?", (key,)).fetchone()
        return NONE_YET if row is None else row[0]

    def keys(self, chosen: Callable[[str], bool]) -> set[str]:
        """Of those whose attempts are `chosen`; reads one after the other."""
        with self._clear():
            return {key for key, attempts in self._db.execute("select key, attempts from rollouts") if chosen(attempts)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._db.close()

    def _clear(self) -> AbstractContextManager[None]:
        return told_as(DataError, self._path, "rollouts")
