"""Who may have a request in flight: a queue in front of an adaptive limit.

Promise: never more slots are out than `Aimd.limit` allowed when they were given; whoever came first goes first; a caller
that is cancelled or whose deadline passes leaves neither a slot taken nor a gap in the queue. Use from one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque

from mmsr_ray.tools.limits import Aimd


class Slots:
    def __init__(self, aimd: Aimd) -> None:
        self._aimd = aimd
        self._queue: deque[asyncio.Future[None]] = deque()
        self.taken = 0

    async def take(self, deadline: float) -> None:
        """Wait for a slot; `give_back` returns it. Raises TimeoutError at `deadline` (event-loop time)."""
        if self.taken < self._aimd.limit and not self._queue:
            self.taken += 1
            return
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(ticket)
        try:
            async with asyncio.timeout_at(deadline):
                await ticket
        except BaseException:  # cancelled or too late
            if ticket.done() and not ticket.cancelled():
                self.give_back()  # the slot came at the same moment
            ticket.cancel()
            self._serve()  # whoever stood behind may be first now
            raise

    def give_back(self) -> None:
        self.taken -= 1
        self._serve()

    def _serve(self) -> None:
        """Give out what is free, in order; those that left the queue are passed over."""
        while self._queue and (self._queue[0].done() or self.taken < self._aimd.limit):
            ticket = self._queue.popleft()
            if not ticket.done():
                self.taken += 1
                ticket.set_result(None)
