"""Who may ask: API keys, of which only SHA-256 hashes are kept. Pure, but for one file and the environment.

Promise: the time a look-up takes does not tell how much of a key was right; no key is ever stored or logged. Without keys
anybody may ask, and that is refused unless the service listens on a loopback address alone.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mmsr_ray.serving.errors import Refused
from mmsr_ray.serving.settings import ServingConfig, is_loopback

_ENTRY = re.compile(r"([A-Za-z0-9_.-]+):([0-9a-f]{64})(:admin)?")


class KeysError(ValueError):
    """Keys that cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks; `admin` may change the weights."""

    name: str
    admin: bool = False


ANYBODY = Caller("anybody", admin=True)  # where no keys are asked for, which is on this machine alone


class Keys:
    """`entries`: NAME:SHA256 or NAME:SHA256:admin. Raises KeysError."""

    def __init__(self, entries: Iterable[str]) -> None:
        self.entries = list(entries)
        self._callers: list[tuple[bytes, Caller]] = []
        for number, entry in enumerate(self.entries, 1):
            found = _ENTRY.fullmatch(entry)
            if not found:
                raise KeysError(f"API key {number} is not NAME:SHA256 or NAME:SHA256:admin: write the sha256sum of the key in hex")
            self._callers.append((bytes.fromhex(found[2]), Caller(found[1], bool(found[3]))))

    @classmethod
    def read(cls, c: ServingConfig, environment: Mapping[str, str]) -> Self:
        """From serving.keys_file and the variable serving.keys_env. Raises KeysError, also where keys are needed and there are none."""
        entries = environment.get(c.keys_env, "").split()
        if c.keys_file:
            try:
                entries += Path(c.keys_file).read_text().split()
            except OSError as error:
                raise KeysError(f"serving.keys_file={c.keys_file} cannot be read: {error.strerror}") from None
        keys = cls(entries)
        if not keys.needed and not is_loopback(c.host):
            raise KeysError(
                f"serving.host={c.host} can be reached from elsewhere: set serving.keys_file or {c.keys_env}, or host=127.0.0.1"
            )
        return keys

    @property
    def needed(self) -> bool:
        return bool(self._callers)

    def caller(self, authorization: str) -> Caller:
        """Whose the `Authorization` header is. Raises Refused."""
        if not self._callers:
            return ANYBODY
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        found = None
        for known, caller in self._callers:  # all of them, whichever it is
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None or scheme.lower() != "bearer":
            raise Refused("invalid_api_key", "this needs an API key: send Authorization: Bearer KEY")
        return found
