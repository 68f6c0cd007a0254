"""Which weight versions there are, and their buckets in order. Pure asyncio; the actor around it is `weights.store`.

Invariant: a version that was completed has all its buckets for good; one that is on its way is served as far as it has come,
and whoever asks for more waits until that is there, or is told that it never will be. The two newest completed versions are kept; the
older goes when a new one begins, so that no more than two lie in memory at a time.
"""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

Ref = TypeVar("Ref")

VERSIONS_KEPT = 2
NO_VERSION = -1


class UnknownVersion(KeyError):
    """A version that was never published, or is gone."""


class _Version(Generic[Ref]):
    def __init__(self) -> None:
        self.buckets: dict[int, Ref] = {}
        self.count: int | None = None  # None: on its way
        self.manifest: dict[str, Any] = {}
        self.changed = asyncio.Event()

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Versions(Generic[Ref]):
    """Versions by number. Made and used on one event loop."""

    def __init__(self) -> None:
        self._versions: dict[int, _Version[Ref]] = {}

    # ------------------------------------------------------------------------------------------------ publisher

    def begin(self, version: int) -> None:
        """Open a version. One that was left open is given up. Raises ValueError unless `version` grows, or repeats the latest."""
        if version < self.latest():
            raise ValueError(f"weight version {version} published after {self.latest()}")
        for other in [n for n, v in self._versions.items() if v.count is None]:
            self.abandon(other)
        self._drop_all_but(VERSIONS_KEPT - 1)
        self._versions[version] = _Version()

    def add(self, version: int, index: int, bucket: Ref) -> None:
        """Bucket `index` of an open version; they may come in any order. Raises UnknownVersion."""
        found = self._found(version)
        found.buckets[index] = bucket
        found.tell()

    def complete(self, version: int, count: int, manifest: dict[str, Any] | None = None) -> None:
        """All `count` buckets are there: the version is current. Raises ValueError when they are not, or are none."""
        found = self._found(version)
        if not count or set(found.buckets) != set(range(count)):
            raise ValueError(f"weight version {version} has buckets {sorted(found.buckets)}, expected {count}")
        found.count, found.manifest = count, dict(manifest or {})
        found.tell()

    def abandon(self, version: int) -> None:
        """Forget a version that will not be completed; who waits for it is told. Nothing happens to a completed one."""
        found = self._versions.get(version)
        if found is not None and found.count is None:
            del self._versions[version]
            found.tell()

    # ------------------------------------------------------------------------------------------------ readers

    def latest(self) -> int:
        """The newest completed version, or NO_VERSION."""
        return max(self.versions(), default=NO_VERSION)

    def versions(self) -> list[int]:
        return sorted(n for n, v in self._versions.items() if v.count is not None)

    def manifest(self, version: int) -> dict[str, Any]:
        """What the publisher said of a completed version, with its number of buckets. Raises UnknownVersion."""
        found = self._found(version)
        if found.count is None:
            raise UnknownVersion(f"weight version {version} is not complete yet")
        return {**found.manifest, "buckets": found.count}

    async def bucket(self, version: int, index: int, seconds: float) -> Ref | None:
        """One bucket, waited for; None beyond the last. Raises UnknownVersion, also when it is given up, and TimeoutError."""
        async with asyncio.timeout(seconds):
            while True:
                found = self._found(version)
                if index in found.buckets:
                    return found.buckets[index]
                if found.count is not None:
                    return None
                await found.changed.wait()

    def _found(self, version: int) -> _Version[Ref]:
        if version not in self._versions:
            raise UnknownVersion(f"weight version {version} is not in the store: it holds {sorted(self._versions)}")
        return self._versions[version]

    def _drop_all_but(self, kept: int) -> None:
        for old in self.versions()[:-kept]:
            del self._versions[old]
