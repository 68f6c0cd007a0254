"""Random seeds that follow from what they are for. Pure.

Promise: equal parts give equal seeds, on every machine and in every process; unequal ones give unrelated seeds.
"""

from __future__ import annotations

import hashlib
import json


def seed_of(first: int | None, *parts: int | str) -> int | None:
    """A seed of 63 bits from a seed and what it is used for next; None stays None (not seeded)."""
    if first is None:
        return None
    return int.from_bytes(hashlib.sha256(json.dumps([first, *parts]).encode()).digest()[:8], "big") >> 1
