"""Two resolved configs, key by key. Pure.

Promise: what is not told apart is only where things lie and what they may cost (`LOCATIONS`); a setting that one side lacks
is a difference too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

LOCATIONS = (
    "dir",
    "cache_dir",
    "cache",
    "benchmarks_dir",
    "tape",
    "budget_usd",
    "trackers",
    "tracking",
)  # settings that say where answers come from, what they may cost or who is told, not what they are

Settings = Mapping[str, Any]
Differences = dict[str, tuple[Any, Any]]


def differences(saved: Settings, now: Settings) -> Differences:
    """Dotted key -> (value before, value now) wherever they differ; None stands for absent. Locations are left out."""
    old, new = dict(_flat(saved)), dict(_flat(now))
    return {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)}


def said(found: Differences) -> str:
    """In words; "" for none."""
    return ", ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in found.items())


def under(key: str, names: Iterable[str]) -> bool:
    """Is a dotted key one of these settings, or in one of these sections?"""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if prefix and key in LOCATIONS:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
