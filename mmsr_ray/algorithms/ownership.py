"""Whose run folder it is: one Algorithm's, the one that started last.

A node that is cut off from the others goes on, and so does an Algorithm on it, while Tune starts another on a node that it
can reach. Both reach the folder, for storage is another network's affair. Ray ends the old one only some time after the
network is back.

Promise: whoever called `take` last owns the folder, and everybody before him gets NotOwner from `check`. Call it right
before something is written there. Between the look and the write lies a moment in which the folder can change hands; what
is written then is replaced by the new owner when he comes to the same step.
"""

from __future__ import annotations

import uuid
from pathlib import Path

FILE = "owner"


class NotOwner(RuntimeError):
    """Another Algorithm has taken the run folder: this one must write nothing more."""


class Ownership:
    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._token = uuid.uuid4().hex

    def take(self) -> None:
        """From here on the folder is ours."""
        temporary = self._file.with_name(f"{FILE}.{self._token}")
        temporary.write_text(self._token)
        temporary.replace(self._file)

    def check(self) -> None:
        """Raises NotOwner when somebody has taken the folder since."""
        if self._file.read_text() != self._token:
            raise NotOwner(
                f"{self._file.parent} belongs to another Algorithm that was started after this one: either this one's node was cut off "
                "and Ray has replaced it, or the run was submitted twice. This one stops"
            )
