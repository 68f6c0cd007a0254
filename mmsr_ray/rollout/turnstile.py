"""Lets requests into the engine one by one and an update only when none is half way in. Pure asyncio.

Invariant: while an update holds the turnstile nobody passes, and when it gets it nobody is inside. A request that is
half way in when vLLM's picture caches are cleared would refer to a picture that is gone. Waiting updates go first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turnstile:
    """Many may pass at once, or one may hold it. Bound to one event loop."""

    def __init__(self) -> None:
        self._passing = 0
        self._holders = 0  # holding or waiting to
        self._empty = asyncio.Event()
        self._empty.set()
        self._open = asyncio.Event()
        self._open.set()
        self._one_holder = asyncio.Lock()

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Wait until nobody holds it, then be inside."""
        while not self._open.is_set():
            await self._open.wait()
        self._passing += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._passing -= 1
            if self._passing == 0:
                self._empty.set()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Shut it, wait until everybody is through, and keep it shut."""
        self._holders += 1
        self._open.clear()
        try:
            async with self._one_holder:
                await self._empty.wait()
                yield
        finally:
            self._holders -= 1
            if self._holders == 0:
                self._open.set()
