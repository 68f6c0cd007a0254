"""Which prompts are admitted, in flight, ready and trained. A pure state machine: no Ray, no clock.

Invariants
- Charged groups (queued, in flight, ready) never exceed (staleness + 1) * groups_per_step.
- A group that was dispatched at weight version v is trained at a version <= v + staleness: `take_batch` hands out a
  batch only if every charged group can still meet its deadline afterwards (earliest deadline first).
- Each admitted ticket ends in exactly one of trained, filtered, given up. A lost group goes back to the front of the
  queue under the same key. Charged keys are what a checkpoint must hand out again; every other key has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

Key = tuple[int, str]  # (epoch, uid)


class TicketLike(Protocol):
    """What the ledger reads of a ticket."""

    @property
    def uid(self) -> str: ...
    @property
    def epoch(self) -> int: ...


class Stage(StrEnum):
    QUEUED = "queued"
    FLYING = "flying"
    READY = "ready"


@dataclass(slots=True)
class Entry:
    """One charged group. `result` is opaque here: whatever the sampler needs once the group is ready."""

    ticket: Any
    order: int  # of admission
    stage: Stage = Stage.QUEUED
    version: int = -1  # of the weights at dispatch; -1 while queued
    losses: int = 0
    result: Any = None

    @property
    def key(self) -> Key:
        return (self.ticket.epoch, self.ticket.uid)


class Ledger:
    """Book-keeping of groups between the data feeder and the learner."""

    def __init__(self, groups_per_step: int, staleness: int, loss_limit: int, steps: int) -> None:
        """`steps` is how many batches are still to be trained: nothing is admitted that none of them could take."""
        self.groups_per_step = groups_per_step
        self._wanted = steps * groups_per_step
        self.staleness = staleness
        self.loss_limit = loss_limit
        self.version = 0
        self._entries: dict[Key, Entry] = {}
        self._admitted = 0
        self.counts: Counter[str] = Counter()  # since the last `reset_counts`: requeued, filtered, given_up

    # ------------------------------------------------------------------------------------------------ admission

    @property
    def charged(self) -> int:
        return len(self._entries)

    @property
    def room(self) -> int:
        """How many more tickets may be admitted now."""
        return min((self.staleness + 1) * self.groups_per_step, self._wanted) - self.charged

    def admit(self, tickets: Iterable[TicketLike]) -> None:
        """Charge tickets, in order. Raises ValueError for one beyond the room or one that is already charged."""
        for ticket in tickets:
            key = (ticket.epoch, ticket.uid)
            if key in self._entries:
                raise ValueError(f"ticket {key} was handed out twice")
            if self.room <= 0:
                raise ValueError(f"ticket {key} exceeds the room of {self.charged} charged groups")
            self._entries[key] = Entry(ticket=ticket, order=self._admitted)
            self._admitted += 1

    def queued(self) -> list[Entry]:
        """Entries that wait for a runner, oldest first."""
        return self._staged(Stage.QUEUED)

    def flying(self) -> list[Entry]:
        return self._staged(Stage.FLYING)

    def ready(self) -> list[Entry]:
        return self._staged(Stage.READY)

    def stages(self) -> dict[str, int]:
        """How many groups are charged now, by stage."""
        counts = Counter(entry.stage for entry in self._entries.values())
        return {str(stage): counts[stage] for stage in Stage}

    def _staged(self, stage: Stage) -> list[Entry]:
        return sorted((e for e in self._entries.values() if e.stage is stage), key=lambda e: e.order)

    # ------------------------------------------------------------------------------------------------ transitions

    def dispatch(self, entry: Entry) -> None:
        entry.stage, entry.version = Stage.FLYING, self.version

    def complete(self, entry: Entry, result: Any) -> None:
        entry.stage, entry.result = Stage.READY, result

    def lose(self, entry: Entry) -> bool:
        """The group is gone or unusable: queue its prompt again. False when its losses exceed the limit: given up."""
        entry.stage, entry.version, entry.result = Stage.QUEUED, -1, None
        entry.losses += 1
        if entry.losses > self.loss_limit:
            self.counts["given_up"] += 1
            self._end(entry)
            return False
        self.counts["requeued"] += 1
        return True

    def put_back(self, entry: Entry) -> None:
        """Queue a prompt again without counting a loss: nothing is wrong with it."""
        entry.stage, entry.version, entry.result = Stage.QUEUED, -1, None

    def requeue(self, entry: Entry) -> None:
        """Queue a prompt again whose group is gone through no fault of its own."""
        self.put_back(entry)
        self.counts["requeued"] += 1

    def withdraw_unfinished(self) -> list[Key]:
        """Forget every prompt that is queued or in flight: the feeder is about to hand them out again. Ready groups stay."""
        gone = [entry for entry in self._entries.values() if entry.stage is not Stage.READY]
        self.counts["requeued"] += sum(entry.stage is Stage.FLYING for entry in gone)
        for entry in gone:
            self._end(entry)
        return [entry.key for entry in sorted(gone, key=lambda e: e.order)]

    def filter(self, entry: Entry) -> None:
        """The group carries no signal: end it untrained and free its charge."""
        self.counts["filtered"] += 1
        self._end(entry)

    def _end(self, entry: Entry) -> None:
        del self._entries[entry.key]

    # ------------------------------------------------------------------------------------------------ batches

    def take_batch(self) -> list[Entry] | None:
        """The next `groups_per_step` ready groups by deadline, or None while a full and safe batch is not there.

        The groups stay charged until `trained`.
        """
        batch = sorted(self.ready(), key=lambda e: (e.version, e.order))[: self.groups_per_step]
        if len(batch) < self.groups_per_step:
            return None
        taken = {e.key for e in batch}
        deadlines = Counter(self._deadline(e) for e in self._entries.values() if e.key not in taken)
        due = 0
        for step in range(self.version, self.version + self.staleness + 1):
            due += deadlines[step]
            if due > (step - self.version) * self.groups_per_step:
                return None  # a slower group must come first, or it would grow too old
        return batch

    def _deadline(self, entry: Entry) -> int:
        """Last version at which the group may be trained; a queued group will be dispatched now at the earliest."""
        return (self.version if entry.stage is Stage.QUEUED else entry.version) + self.staleness

    def trained(self, batch: Sequence[Entry]) -> None:
        """The learner has taken the batch: end its tickets and step the version."""
        for entry in batch:
            self._end(entry)
        self.version += 1
        self._wanted -= len(batch)

    def reset_counts(self) -> dict[str, int]:
        counts = {name: self.counts[name] for name in ("requeued", "filtered", "given_up")}
        self.counts.clear()
        return counts

    # ------------------------------------------------------------------------------------------------ resume

    def charged_keys(self) -> list[Key]:
        """What was admitted and has not ended, in order of admission."""
        return [e.key for e in sorted(self._entries.values(), key=lambda e: e.order)]

    def restart(self, version: int, steps: int) -> None:
        """Forget all charges: the feeder hands those tickets out again. `version` is that of the weights now published."""
        self.version = version
        self._wanted = steps * self.groups_per_step
        self._entries.clear()
        self.counts.clear()
