"""Where a run stands in the stream of prompts: a place, and the few tickets before it that are to leave again. Pure.

Promise: every ticket of the stream leaves once, and those handed back leave again, first and in order. A cursor made from
`state(in_flight)` hands out exactly the tickets in flight, then those that waited, then the rest of the stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from mmsr_ray.data.reader import rank
from mmsr_ray.data.schema import DataError
from mmsr_ray.types import Ticket

Key = tuple[int, str]  # (epoch, uid)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """The next prompt is the first whose (epoch, rank) is not less than this. `Place(0, 0)` is the start."""

    epoch: int = 0
    rank: int = 0

    def after(self) -> Place:
        return Place(self.epoch, self.rank + 1)


class Cursor:
    """Book-keeping of one stream, without the stream."""

    def __init__(self, seed: int, questions: str, state: dict[str, Any]) -> None:
        """`questions` is their digest; `state` is that of `state`, {} for the start, or any {"epoch", "rank"}."""
        self._seed, self._questions = seed, questions
        self.next = Place(state.get("epoch", 0), state.get("rank", 0))
        again = [Ticket(uid, epoch, rank(uid, seed, epoch), []) for epoch, uid in state.get("again", ())]
        self.again = sorted(again, key=_place)

    def take_again(self, k: int) -> list[Ticket]:
        """At most `k` of the tickets that are to leave before the stream's next; their sample may be absent."""
        taken = self.again[:k]
        del self.again[:k]
        return taken

    def passed(self, ticket: Ticket) -> None:
        """The stream's next ticket leaves."""
        self.next = _place(ticket).after()

    def left(self, ticket: Ticket) -> None:
        """A ticket has left: one of those that were to leave again, or the stream's next. For one who watches from outside."""
        waiting = [other for other in self.again if (other.epoch, other.uid) != (ticket.epoch, ticket.uid)]
        if len(waiting) == len(self.again):
            self.passed(ticket)
        self.again = waiting

    def give_back(self, tickets: Iterable[Ticket]) -> None:
        """They leave again, each once however often it is given back."""
        merged = {(t.epoch, t.uid): t for t in (*self.again, *tickets)}
        self.again = sorted(merged.values(), key=_place)

    def state(self, in_flight: Iterable[Ticket | Key] = ()) -> dict[str, Any]:
        """{"seed", "questions", "epoch", "rank": the first place not yet handed out, "again": [(epoch, uid)] to leave before it}.

        `in_flight`: tickets, or their keys, that were handed out and whose work is not yet done.
        """
        keys = {(t.epoch, t.uid) if isinstance(t, Ticket) else (t[0], t[1]) for t in (*in_flight, *self.again)}
        return {
            "seed": self._seed,
            "questions": self._questions,
            "epoch": self.next.epoch,
            "rank": self.next.rank,
            "again": sorted(keys),
        }


def digest(uids: Iterable[str]) -> str:
    """12 hex digits that change whenever the set of questions does; their order and where they lie do not count."""
    return hashlib.sha256("\n".join(sorted(uids)).encode()).hexdigest()[:12]


def check(state: dict[str, Any], seed: int, questions: str, uids: Collection[str], path: str) -> None:
    """Raises DataError when `state` belongs to another order, or to other questions than those at `path`."""
    if state.get("seed", seed) != seed:
        raise DataError(f"the checkpoint's data order has seed {state['seed']}, this run has {seed}: set run.seed to the former")
    lost = [uid for _, uid in state.get("again", ()) if uid not in uids]
    if lost:
        raise DataError(f"the checkpoint's questions {', '.join(lost[:3])} are not in {path}: use the set it was made with")
    if state.get("questions", questions) != questions:
        raise DataError(
            f"the checkpoint's set of questions ({state['questions']}) is not that of {path} ({questions}): some would be trained twice or "
            "never; use the set it was made with"
        )


def _place(ticket: Ticket) -> Place:
    return Place(ticket.epoch, ticket.rank)
