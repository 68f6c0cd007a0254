"""What a tracker is, and the numbers it gets. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol


class TrackerError(Exception):
    """A tracker cannot begin as things stand here: one sentence that says what to do."""


class Tracker(Protocol):
    """One place where numbers are drawn. Calls may raise whatever the library behind raises; they come from one thread."""

    @property
    def supersedes(self) -> bool:
        """A step may be told again, and replaces what was told of it and of the steps after it."""
        ...

    def start(self, name: str, settings: Mapping[str, Any], run_id: str | None) -> str:
        """Begin a run called `name` with nested `settings`, or go on with the run `run_id`; returns its id."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, *, ok: bool) -> None:
        """The last call; `ok` is False where the run ends in an error."""
        ...


def flatten(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name, number) of every finite number in a nested mapping, joined with "/"; `step` itself is no value."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and math.isfinite(value) and prefix + key != "step":
            yield prefix + key, float(value)


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config as it may leave this machine. Keys are not in it, only the names of their variables; what a URL
    carries beyond scheme, host, port and path is taken out, because it may carry keys.
    """
    return {key: _public(value) for key, value in config.items()}


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return settings_of(value)
    if isinstance(value, list):
        return [_public(item) for item in value]
    return bare_url(value) if isinstance(value, str) and "://" in value else value


def bare_url(url: str) -> str:
    """Without user, password, query and fragment."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    cut = min((position for mark in "?#" if (position := path.find(mark)) >= 0), default=len(path))
    return f"{scheme}://{host.split('?')[0].split('#')[0].rpartition('@')[2]}{slash}{path[:cut]}"
