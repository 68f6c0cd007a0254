"""An event loop whose clock jumps to the next timer: an hour of waiting takes milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """For code that waits for nothing but timers and other tasks (no sockets, no threads)."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        timers = [timer.when() for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        if not self._ready and timers:  # type: ignore[attr-defined]
            self._now = max(self._now + 1e-9, min(timers))  # a real clock never stands still either
        super()._run_once()  # type: ignore[misc]


def virtually(main: Coroutine[Any, Any, T]) -> T:
    """The result of `main`, under a clock that only it moves."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
