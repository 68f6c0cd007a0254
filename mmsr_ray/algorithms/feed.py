"""The data feeder as the driver sees it: one open request, and a cursor of its own over what has come.

Invariant: the cursor stands behind the tickets that have come here, and only those. So the driver knows all that a feeder
must be told to go on (which tickets are charged is the ledger's), and a checkpoint asks nothing of the actor: a feeder that
dies is replaced, and hands out again what the driver says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError

from mmsr_ray.data.cursor import Cursor, Key
from mmsr_ray.types import Ticket

logger = logging.getLogger(__name__)

FEED_SECONDS = 300.0  # the data feeder must answer within this time: it may be starting its readers


class FeedError(RuntimeError):
    """The data feeder does not answer."""


class Feed:
    """`start(state)` makes a DataFeeder actor; None is the beginning of the order that `seed` gives."""

    def __init__(self, start: Callable[[dict[str, Any] | None], Any], seed: int) -> None:
        self._start = start
        self._seed = seed
        self._open: tuple[ObjectRef, float] | None = None
        self.actor = start(None)
        self._first_state: ObjectRef = self.actor.state.remote()  # says which set of questions it is; the answer outlives the actor
        self._cursor: Cursor | None = None

    @property
    def cursor(self) -> Cursor:
        if self._cursor is None:
            self._cursor = self._cursor_at({})
        return self._cursor

    def _cursor_at(self, state: dict[str, Any]) -> Cursor:
        questions: str = ray.get(self._first_state, timeout=FEED_SECONDS)["questions"]
        return Cursor(self._seed, questions, state)

    # ------------------------------------------------------------------------------------------------ tickets

    @property
    def request(self) -> ObjectRef | None:
        """The open request, to be waited for."""
        return self._open[0] if self._open else None

    def ask(self, count: int) -> None:
        """Request tickets unless a request is open. Raises FeedError when that one is overdue."""
        if self._open is None:
            if count > 0:
                self._open = (self.actor.next_tickets.remote(count), time.monotonic())
        elif time.monotonic() - self._open[1] > FEED_SECONDS:
            raise FeedError(f"the data feeder did not answer within {FEED_SECONDS:.0f} s: see its log, and leave it a free CPU")

    def take(self) -> list[Ticket]:
        """The answer to the open request, once it is there. Raises RayActorError when the feeder died: call `renew`."""
        assert self._open is not None
        ref, self._open = self._open[0], None
        tickets: list[Ticket] = ray.get(ref, timeout=FEED_SECONDS)
        for ticket in tickets:
            self.cursor.left(ticket)
        return tickets

    # ------------------------------------------------------------------------------------------------ going back

    def state(self, charged: Iterable[Key]) -> dict[str, Any]:
        """For a checkpoint, and for a feeder that goes on from here: plain values, see `Cursor.state`."""
        return self.cursor.state(charged)

    def restore(self, state: dict[str, Any], timeout: float) -> None:
        """Go on from a `state`. A feeder that is dead is replaced."""
        try:
            ray.get(self.actor.restore.remote(state), timeout=timeout)
        except RayActorError:
            logger.exception("the data feeder died: a new one takes its place")
            self.actor = self._start(state)
        self._open = None
        self._cursor = self._cursor_at(state)

    def renew(self, again: Iterable[Key]) -> None:
        """The feeder, or what it had loaded, is gone: a new one hands out `again` first, and then goes on."""
        ray.kill(self.actor)  # it may live, and only its node's part of the object store be gone
        state = self.state(again)
        self._open = None
        self.actor = self._start(state)
        self._cursor = self._cursor_at(state)
