"""Two resolved configs, key by key. Pure.

Promise: what is not told apart is only where things lie and what they may cost (`LOCATIONS`). A setting that one side lacks has
its default there: it is of another release, which adding a setting does not make another run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

LOCATIONS = (
    "dir",
    "cache_dir",
    "cache",
    "benchmarks_dir",
    "tape",
    "budget_usd",
    "card_gib",
    "host_gib",
    "cards",
    "node",
    "trackers",
    "tracking",
)  # settings that say where answers come from, what they may cost or who is told, not what they are

Settings = Mapping[str, Any]
Differences = dict[str, tuple[Any, Any]]


def differences(saved: Settings, now: Settings) -> Differences:
    """Dotted key -> (value before, value now) wherever they differ; None where there is none and no default. Locations are left out."""
    old, new = dict(_flat(saved)), dict(_flat(now))
    pairs = {key: (old.get(key, _default(key)), new.get(key, _default(key))) for key in sorted(old.keys() | new.keys())}
    return {key: (before, after) for key, (before, after) in pairs.items() if before != after}


def said(found: Differences) -> str:
    """In words; "" for none."""
    return ", ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in found.items())


def under(key: str, names: Iterable[str]) -> bool:
    """Is a dotted key one of these settings, or in one of these sections?"""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _default(key: str) -> Any:
    return _defaults().get(key)


@cache
def _defaults() -> Settings:
    from mmsr_ray.config import Config, to_dict  # whose sections may want to tell configs apart themselves

    return dict(_flat(to_dict(Config())))


def _flat(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if prefix and key in LOCATIONS:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
