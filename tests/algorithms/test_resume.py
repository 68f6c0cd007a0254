"""Every prompt of an epoch is trained once in the history that counts, whatever breaks and whenever: as a theorem.

The ledger, the cursor and what a checkpoint holds are the real ones; the stream is the order itself, and the learner, the
runners and their deaths are scripted. What an engine and DeepSpeed add is tested in test_grpo and tests/jobs/test_reinforce.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr_ray.algorithms.ledger import Entry, Key, Ledger
from mmsr_ray.data.cursor import Cursor, Place, check, digest
from mmsr_ray.data.reader import rank
from mmsr_ray.data.schema import DataError
from mmsr_ray.types import Ticket

SEED = 11


class Fault(StrEnum):
    DRIVER = "the driver is killed and a new one goes on from the last checkpoint"
    LEARNER = "a rank dies and the run goes back to the last checkpoint"
    RUNNER = "a runner dies with groups in flight"
    NODE = "an elastic runner leaves with its node: groups in flight and ready ones are gone"
    FEEDER = "the data feeder dies with prompts that it had loaded, and with some that it was to hand out again"
    DAMAGE = "the driver is killed and the last checkpoint is damaged: the one before it is taken"
    MONEY = "the money ends: what was refused is put back, the run stops at a checkpoint and goes on later"


def stream(uids: list[str], start: Place) -> Iterator[Ticket]:
    epoch = start.epoch
    while True:
        for uid in sorted(uids, key=lambda uid: rank(uid, SEED, epoch)):
            if Place(epoch, rank(uid, SEED, epoch)) >= start:
                yield Ticket(uid, epoch, rank(uid, SEED, epoch), [])
        epoch += 1


class ScriptedRun:
    """What GRPO does with ledger and cursor, in the same order."""

    def __init__(self, rng: random.Random, questions: int, groups: int, staleness: int, steps: int, every: int) -> None:
        self.rng, self.uids, self.every, self.steps, self.groups = rng, [f"q{i}" for i in range(questions)], every, steps, groups
        self.ledger = Ledger(groups, staleness, loss_limit=2, steps=steps)
        self.staleness, self.step, self.version = staleness, 0, 0
        self.ended: list[tuple[Key, str]] = []  # prompt and how, in the history that counts
        self.metrics: list[int] = []
        self._open({})
        self.saved: list[tuple[dict[str, Any], list[tuple[Key, str]]]] = []  # state, and how prompts had ended by then
        self.checkpoint()

    def _open(self, state: dict[str, Any]) -> None:
        check(state, SEED, digest(self.uids), self.uids, "the set")
        self.cursor = Cursor(SEED, digest(self.uids), state)
        self.tickets = stream(self.uids, self.cursor.next)
        self.seen = Cursor(SEED, digest(self.uids), state)  # the driver's, by what has come

    def checkpoint(self) -> None:
        """What GRPO._small_state holds, through plain values."""
        feeder = self.seen.state(self.ledger.charged_keys())
        assert feeder == self.cursor.state(self.ledger.charged_keys()), "the driver knows where the feeder is"
        state = json.loads(json.dumps({"step": self.step, "version": self.version, "feeder": feeder}))
        self.saved.append((state, list(self.ended)))

    def resume(self, version: int) -> None:
        """From the last checkpoint, in a process that has published `version`. All else that happened since does not count."""
        state, self.ended = self.saved[-1][0], list(self.saved[-1][1])
        self._open(state["feeder"])
        self.step, self.version = state["step"], max(version + 1, state["version"])
        self.ledger.restart(self.version, self.steps - self.step)
        self.metrics = [step for step in self.metrics if step <= state["step"]]

    def next_tickets(self, k: int) -> list[Ticket]:
        taken = self.cursor.take_again(k)
        while len(taken) < k and self.rng.random() < 0.8:  # the queue may be empty for a moment
            ticket = next(self.tickets)
            self.cursor.passed(ticket)
            taken.append(ticket)
        for ticket in taken:
            self.seen.left(ticket)
        return taken

    def _end(self, entry: Entry, how: str) -> None:
        self.ended.append((entry.key, how))

    def pump(self) -> None:
        self.ledger.admit(self.next_tickets(self.ledger.room))
        for entry in self.ledger.queued():
            if self.rng.random() < 0.8:
                self.ledger.dispatch(entry)
        for entry in self.ledger.flying():
            fate = self.rng.random()
            if fate < 0.5:
                self.ledger.complete(entry, None)
            elif fate < 0.55:
                self.ledger.filter(entry)
                self._end(entry, "filtered")
            elif fate < 0.65 and not self.ledger.lose(entry):
                self._end(entry, "given up")

    def train(self) -> None:
        batch = self.ledger.take_batch()
        if batch is None:
            return
        for entry in batch:
            self._end(entry, "trained")
        self.ledger.trained(batch)
        self.step += 1
        self.version += 1
        self.metrics.append(self.step)
        if self.step % self.every == 0:
            self.checkpoint()

    def strike(self, fault: Fault) -> None:
        match fault:
            case Fault.RUNNER:
                for entry in self.ledger.flying():
                    if not self.ledger.lose(entry):
                        self._end(entry, "given up")
            case Fault.NODE:
                for entry in [*self.ledger.flying(), *self.ledger.ready()]:
                    if self.rng.random() < 0.5:
                        self.ledger.requeue(entry)
            case Fault.FEEDER:
                self._open(json.loads(json.dumps(self.seen.state(self.ledger.withdraw_unfinished()))))
            case Fault.LEARNER:
                self.resume(self.version)
            case Fault.DRIVER:
                self.resume(0)
            case Fault.DAMAGE:
                if len(self.saved) > 1:
                    self.saved.pop()
                self.resume(0)
            case Fault.MONEY:
                for entry in self.ledger.flying():
                    self.ledger.put_back(entry)
                self.checkpoint()
                self.resume(0)


@pytest.mark.parametrize("fault", list(Fault))
@settings(max_examples=40, deadline=None)
@given(
    questions=st.integers(3, 17), groups=st.integers(1, 4), staleness=st.integers(0, 2), every=st.integers(1, 4), seed=st.integers(0, 9999)
)
def test_every_prompt_ends_once_across_epochs(fault: Fault, questions: int, groups: int, staleness: int, every: int, seed: int) -> None:
    rng = random.Random(seed)
    steps = 3 * questions // groups + 2  # into the fourth epoch, unless many are filtered
    run = ScriptedRun(rng, questions, groups, staleness, steps, every)
    struck = 0
    while run.step < steps:
        run.pump()
        if struck < 12 and rng.random() < 0.15:
            struck += 1
            run.strike(fault)
        run.train()

    assert run.metrics == list(range(1, steps + 1)), "each step once, in order"
    counts = Counter(key for key, _ in run.ended)
    assert set(counts.values()) == {1}, "no prompt ends twice in an epoch"
    assert sum(how == "trained" for _, how in run.ended) == steps * groups
    charged = set(run.ledger.charged_keys()) | {(t.epoch, t.uid) for t in run.cursor.again}
    handed = {(epoch, uid) for epoch in range(run.cursor.next.epoch) for uid in run.uids}
    assert handed - charged <= set(counts), "what an epoch that is over has not trained is charged, or was filtered or given up"
    assert not charged & set(counts)


def test_without_faults_and_filters_an_epoch_is_trained_whole_before_the_next() -> None:
    run = ScriptedRun(random.Random(0), questions=7, groups=3, staleness=0, steps=7, every=2)
    run.pump = lambda: _plainly(run)  # type: ignore[method-assign]
    while run.step < 7:
        run.pump()
        run.train()
        if run.step in (3, 5):
            run.checkpoint()
            run.resume(0)
    order = [key for key, _ in run.ended]
    assert [epoch for epoch, _ in order] == [0] * 7 + [1] * 7 + [2] * 7
    assert all({uid for e, uid in order if e == epoch} == set(run.uids) for epoch in range(3))


def _plainly(run: ScriptedRun) -> None:
    run.ledger.admit(run.next_tickets(run.ledger.room))
    for entry in run.ledger.queued():
        run.ledger.dispatch(entry)
        run.ledger.complete(entry, None)


def test_a_cursor_repeats_what_was_in_flight_and_then_goes_on() -> None:
    uids = [f"q{i}" for i in range(5)]
    cursor, tickets = Cursor(SEED, digest(uids), {}), stream(uids, Place())
    gone = [next(tickets) for _ in range(8)]  # into the second epoch
    for ticket in gone:
        cursor.passed(ticket)
    cursor.give_back([gone[6]])
    state = json.loads(json.dumps(cursor.state([gone[7], (gone[2].epoch, gone[2].uid)])))
    again = Cursor(SEED, digest(uids), state)
    assert [(t.epoch, t.uid) for t in again.take_again(9)] == [(t.epoch, t.uid) for t in (gone[2], gone[6], gone[7])]
    assert next(stream(uids, again.next)) == next(tickets)


def test_another_set_or_seed_is_refused_even_where_no_prompt_was_in_flight() -> None:
    uids = [f"q{i}" for i in range(5)]
    state = Cursor(SEED, digest(uids), {}).state()
    check(state, SEED, digest(reversed(uids)), uids, "elsewhere.parquet")
    more = [*uids, "q5"]
    with pytest.raises(DataError, match=r"is not that of other\.parquet .* use the set it was made with"):
        check(state, SEED, digest(more), more, "other.parquet")
    with pytest.raises(DataError, match=r"set run\.seed to the former"):
        check(state, SEED + 1, digest(uids), uids, "elsewhere.parquet")
