"""The ledger's invariants, over random histories of completions, losses, filters and steps."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmsr_ray.algorithms.ledger import Entry, Ledger


@dataclass(frozen=True)
class Prompt:
    uid: str
    epoch: int = 0


def prompts(first: int, count: int) -> list[Prompt]:
    return [Prompt(f"q{i}") for i in range(first, first + count)]


def fly(ledger: Ledger) -> list[Entry]:
    queued = ledger.queued()
    for entry in queued:
        ledger.dispatch(entry)
    return queued


def test_synchronous_training_waits_for_every_group_of_the_step() -> None:
    ledger = Ledger(groups_per_step=3, staleness=0, loss_limit=2, steps=99)
    assert ledger.room == 3
    ledger.admit(prompts(0, 3))
    flying = fly(ledger)
    for entry in flying[:2]:
        ledger.complete(entry, "group")
    assert ledger.take_batch() is None
    ledger.complete(flying[2], "group")
    batch = ledger.take_batch()
    assert batch is not None
    assert {e.ticket.uid for e in batch} == {"q0", "q1", "q2"}
    assert ledger.room == 0, "charged until trained"
    ledger.trained(batch)
    assert (ledger.version, ledger.room) == (1, 3)


def test_an_old_group_holds_back_a_full_batch_of_young_ones() -> None:
    ledger = Ledger(groups_per_step=2, staleness=1, loss_limit=2, steps=99)
    ledger.admit(prompts(0, 4))
    slow, *quick = fly(ledger)
    for entry in quick[:2]:
        ledger.complete(entry, None)
    first = ledger.take_batch()
    assert first is not None
    assert first == quick[:2], "nothing is due yet: the quick ones may go first"
    ledger.trained(first)
    ledger.admit(prompts(4, 2))
    for entry in [*fly(ledger), quick[2]]:
        ledger.complete(entry, None)
    assert ledger.take_batch() is None, "the slow group would be two versions old at the next step"
    ledger.complete(slow, None)
    second = ledger.take_batch()
    assert second == [slow, quick[2]]


def test_lost_groups_come_back_first_and_are_given_up_in_the_end() -> None:
    ledger = Ledger(groups_per_step=2, staleness=0, loss_limit=1, steps=99)
    ledger.admit(prompts(0, 2))
    first, _ = fly(ledger)
    assert ledger.lose(first)
    assert [e.ticket.uid for e in ledger.queued()] == ["q0"]
    ledger.dispatch(first)
    assert not ledger.lose(first)
    assert ledger.room == 1
    assert ledger.reset_counts() == {"requeued": 1, "filtered": 0, "given_up": 1}
    assert ledger.charged_keys() == [(0, "q1")]


def test_tickets_beyond_the_room_and_repeated_tickets_are_refused() -> None:
    ledger = Ledger(groups_per_step=1, staleness=1, loss_limit=1, steps=99)
    ledger.admit([Prompt("a")])
    with pytest.raises(ValueError, match="handed out twice"):
        ledger.admit([Prompt("a")])
    ledger.admit([Prompt("a", epoch=1)])  # the next epoch's turn of the same prompt is another group
    with pytest.raises(ValueError, match="exceeds the room"):
        ledger.admit([Prompt("b")])


def test_nothing_is_admitted_beyond_the_last_step() -> None:
    ledger = Ledger(groups_per_step=2, staleness=1, loss_limit=2, steps=2)
    ledger.admit(prompts(0, 4))
    for entry in fly(ledger)[:2]:
        ledger.complete(entry, None)
    batch = ledger.take_batch()
    assert batch is not None
    ledger.trained(batch)
    assert (ledger.charged, ledger.room) == (2, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 10_000))
def test_any_history_respects_room_staleness_and_once_each(groups: int, staleness: int, seed: int) -> None:
    rng = random.Random(seed)
    ledger = Ledger(groups, staleness, loss_limit=3, steps=99)
    handed, trained, ended = 0, [], 0
    again: list[Prompt] = []  # withdrawn when the feeder died; its successor hands them out first
    while ledger.version < 12:
        count = rng.randint(0, ledger.room)
        fresh = count - len(again[:count])
        ledger.admit([*again[:count], *prompts(handed, fresh)])
        again, handed = again[count:], handed + fresh
        for entry in ledger.queued():
            if rng.random() < 0.7:
                ledger.dispatch(entry)
        for entry in ledger.flying():
            fate = rng.random()
            if fate < 0.5:
                ledger.complete(entry, None)
            elif fate < 0.6:
                ended += not ledger.lose(entry)
            elif fate < 0.65:
                ledger.filter(entry)
                ended += 1
            elif fate < 0.7:
                ledger.requeue(entry)
        if rng.random() < 0.1:
            again = [Prompt(uid) for _, uid in ledger.withdraw_unfinished()] + again
        assert 0 <= ledger.charged <= (staleness + 1) * groups
        batch = ledger.take_batch()
        if batch is not None:
            assert len(batch) == groups
            assert all(ledger.version - entry.version <= staleness for entry in batch)
            trained += [entry.ticket.uid for entry in batch]
            ledger.trained(batch)
    assert len(trained) == len(set(trained))
    assert handed == len(trained) + ended + len(ledger.charged_keys()) + len(again), "no prompt vanishes"


class Life(RuleBasedStateMachine):
    """Whatever happens to groups, and in whatever order: every prompt is accounted for, and none is trained too old."""

    @initialize(groups=st.integers(1, 4), staleness=st.integers(0, 3), loss_limit=st.integers(0, 2))
    def begin(self, groups: int, staleness: int, loss_limit: int) -> None:
        self.ledger = Ledger(groups, staleness, loss_limit, steps=99)
        self.admitted = self.trained = self.filtered = self.given_up = 0
        self.ended: set[tuple[int, str]] = set()

    def _pick(self, data: st.DataObject, entries: list[Entry]) -> Entry:
        return entries[data.draw(st.integers(0, len(entries) - 1))]

    @precondition(lambda self: self.ledger.room)
    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.ledger.room))
        self.ledger.admit(prompts(self.admitted, count))
        self.admitted += count

    @precondition(lambda self: self.ledger.queued())
    @rule(data=st.data())
    def dispatch(self, data: st.DataObject) -> None:
        self.ledger.dispatch(self._pick(data, self.ledger.queued()))

    @precondition(lambda self: self.ledger.flying())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.ledger.complete(self._pick(data, self.ledger.flying()), "group")

    @precondition(lambda self: self.ledger.flying())
    @rule(data=st.data(), fate=st.sampled_from(["lost", "filtered", "put back"]))
    def fail(self, data: st.DataObject, fate: str) -> None:
        entry = self._pick(data, self.ledger.flying())
        if fate == "put back":
            self.ledger.put_back(entry)
        elif fate == "filtered":
            self.ledger.filter(entry)
            self.filtered += 1
            self._end(entry)
        elif not self.ledger.lose(entry):
            self.given_up += 1
            self._end(entry)

    @rule()
    def train(self) -> None:
        batch = self.ledger.take_batch()
        if batch is None:
            return
        assert len(batch) == self.ledger.groups_per_step
        assert all(entry.version <= self.ledger.version <= entry.version + self.ledger.staleness for entry in batch)
        self.ledger.trained(batch)
        self.trained += len(batch)
        for entry in batch:
            self._end(entry)

    def _end(self, entry: Entry) -> None:
        assert entry.key not in self.ended, "a prompt ends once"
        self.ended.add(entry.key)

    @invariant()
    def prompts_are_conserved(self) -> None:
        charged = self.ledger.charged_keys()
        assert self.admitted == self.trained + self.filtered + self.given_up + len(charged)
        assert not self.ended & set(charged)
        assert len(charged) == len([*self.ledger.queued(), *self.ledger.flying(), *self.ledger.ready()])

    @invariant()
    def the_charge_is_bounded(self) -> None:
        assert 0 <= self.ledger.charged + self.ledger.room <= (self.ledger.staleness + 1) * self.ledger.groups_per_step


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
