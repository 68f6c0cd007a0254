"""Whose turn it is: the order of hand-overs, and that no failure leaves both sides on the card or nobody awake."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from mmsr_ray.algorithms.parts import bundles
from mmsr_ray.algorithms.turns import Apart, Colocated, ColocatedSharing
from mmsr_ray.config import load
from mmsr_ray.learner.group import LearnerError


class Card:
    """Runners and ranks that take up the card, and complain when they are not alone on it. Failures are scripted."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.gate_open = False
        self.learner, self.engines = True, False
        self.failing: set[str] = set()

    def _do(self, what: str) -> None:
        self.log.append(what)
        if what in self.failing:
            self.failing.discard(what)
            raise LearnerError(f"scripted: {what}")

    def alone(self) -> None:
        assert not (self.learner and self.engines), self.log

    # the runners
    def wait_until_up(self) -> None:
        assert self.gate_open
        self._do("engines start")
        self.engines = True
        self.alone()

    def leave(self, *, timeout: float) -> None:
        assert not self.gate_open, "one that starts over in this moment must wait"
        self._do("engines leave")
        self.engines = False

    def sync(self, version: int, *, timeout: float) -> None:
        assert self.gate_open
        self._do(f"engines load {version}")
        self.engines = True
        self.alone()

    def begin_sync(self, version: int) -> dict[int, Any]:
        self._do(f"engines begin {version}")
        return {1: None}

    def finish_sync(self, calls: dict[int, Any], version: int, *, timeout: float) -> None:
        self._do(f"engines finish {version}")

    # the ranks
    def come_back(self) -> dict[str, float]:
        self._do("learner comes back")
        self.learner = True
        self.alone()
        return {"used": 1.0, "peak": 0.5}

    def learner_leave(self) -> dict[str, float]:
        self._do("learner leaves")
        self.learner = False
        return {"used": 2.0, "peak": 1.5}

    def device_memory(self) -> dict[str, float]:
        return {"used": 3.0, "peak": 0.0}

    def restarted(self) -> None:
        self.learner = True
        self.alone()

    # what is between them
    def publish(self, version: int, opened: Callable[[], object]) -> None:
        assert self.learner, "weights are published by a learner that is awake"
        self._do(f"open {version}")
        opened()
        self._do(f"publish {version}")

    def gate(self, open_: bool) -> None:
        assert not (open_ and self.learner)
        self.gate_open = open_

    # weights where they lie: the engines' are on the card beside the learner's, and nothing else of theirs
    before_pull: Callable[[], object]
    newest, lost = -1, False

    def healthy(self) -> list[int]:
        return [1]

    def offer(self, ranks: list[int]) -> list[str]:
        assert self.learner and ranks == [0]
        self._do("learner offers")
        return ["handles"]

    def load(self, version: int, handles: dict[int, str], *, timeout: float) -> list[int]:
        assert handles == {1: "handles"} and not self.gate_open, "one that starts over in this moment must wait"
        self._do(f"engines open {version}")
        return [1] if self.lost else []

    def publish_from_anywhere(self, version: int, opened: Callable[[], object]) -> None:
        self._do(f"publish {version}")
        self.newest = version


class _Learners:
    def __init__(self, card: Card) -> None:
        self.come_back, self.leave, self.device_memory = card.come_back, card.learner_leave, card.device_memory
        self.offer = card.offer


def sharing(card: Card) -> ColocatedSharing:
    learners: Any = _Learners(card)
    return ColocatedSharing(card, learners, card.publish_from_anywhere, card.gate, seconds=1, newest_in_store=lambda: card.newest)


def colocated(card: Card) -> Colocated:
    return Colocated(card, _Learners(card), card.publish, card.gate, seconds=1)  # type: ignore[arg-type]


def step(turns: Colocated, card: Card, version: int) -> None:
    turns.to_learner()
    card._do("learn")
    assert card.learner and not card.engines
    turns.publish(version)
    assert card.engines and not card.learner


def test_a_step_hands_the_card_over_and_back() -> None:
    card = Card()
    turns = colocated(card)
    turns.publish(0)
    assert card.log == ["open 0", "publish 0", "learner leaves", "engines start"]
    turns.record()
    card.log.clear()
    step(turns, card, 1)
    assert card.log == ["engines leave", "learner comes back", "learn", "open 1", "publish 1", "learner leaves", "engines load 1"]
    record = turns.record()
    assert set(record["turns"]) == {"engines_leave", "learner_returns", "learner_leaves", "engines_return"}
    assert record["device_gib"]["between_turns_used"] == 1.0
    assert record["device_gib"]["learner_left_peak"] == 1.5
    assert record["device_gib"]["sampling_used"] == 3.0
    assert turns.record() == {"turns": {}}


def test_a_checkpoint_borrows_the_card_and_gives_it_back_with_the_same_weights() -> None:
    card = Card()
    turns = colocated(card)
    turns.publish(4)
    card.log.clear()
    with turns.borrowed(4):
        assert card.learner and not card.engines
    assert card.log == ["engines leave", "learner comes back", "learner leaves", "engines load 4"]
    turns.to_engines(4)
    assert card.log[-1] == "engines load 4", "they have it"
    with pytest.raises(OSError, match="full"), turns.borrowed(4):
        raise OSError("disk full")
    assert card.engines and not card.learner


def test_a_learner_that_breaks_while_it_has_borrowed_the_card_is_found_out_before_the_next_step() -> None:
    card = Card()
    turns = colocated(card)
    turns.publish(0)
    card.failing = {"learner leaves"}
    with pytest.raises(LearnerError), turns.borrowed(0):
        pass
    card.failing = {"learner leaves"}
    with pytest.raises(LearnerError):
        turns.to_engines(0)


@pytest.mark.parametrize("seed", range(20))
def test_after_any_failure_a_restarted_learner_gets_on(seed: int) -> None:
    """As GRPO._rewind does it: whatever failed, the engines leave, new ranks start, weights are published again."""
    rng = random.Random(seed)
    card = Card()
    turns = colocated(card)
    turns.publish(0)
    version = 0
    for _ in range(30):
        version += 1
        card.failing = {rng.choice(["learn", f"publish {version}", "learner leaves", "learner comes back", "nothing"])}
        try:
            step(turns, card, version)
        except LearnerError:
            card.learner = False  # its processes are killed
            turns.for_new_learner()
            assert not card.engines and not card.gate_open
            card.restarted()
            version += 1
            turns.publish(version)
        assert card.engines and not card.learner and card.gate_open


def test_engines_open_the_learners_weights_before_it_leaves_and_come_back_after() -> None:
    card = Card()
    turns = sharing(card)
    turns.publish(0)
    assert card.log == ["publish 0", "learner leaves", "engines start"], "the first version is pulled by engines that start"
    card.log.clear()
    step(turns, card, 1)
    opened = ["engines leave", "learner comes back", "learn", "learner offers", "engines open 1", "learner leaves", "engines load 1"]
    assert card.log == opened
    card.log.clear()
    card.before_pull()  # a runner starts over
    card.before_pull()
    turns.fill_store()
    assert card.log == ["publish 1"]
    card.log.clear()
    with turns.borrowed(1):
        assert card.learner and not card.engines
    assert card.log[2:] == ["learner offers", "engines open 1", "learner leaves", "engines load 1"]


def test_a_learner_whose_weights_an_engine_did_not_take_is_restarted_before_anything_else() -> None:
    card = Card()
    turns = sharing(card)
    turns.publish(0)
    card.lost = True
    with pytest.raises(LearnerError, match=r"runners \[1\] did not take"), turns.borrowed(0):
        pass
    for what in (lambda: turns.to_engines(0), turns.to_learner, lambda: turns.publish(1)):
        with pytest.raises(LearnerError):
            what()
    card.lost, card.learner = False, False
    turns.for_new_learner()
    card.restarted()
    turns.publish(1)
    assert card.engines and not card.learner


def test_apart_on_policy_runners_load_along_and_others_wait_for_the_whole() -> None:
    card = Card()
    Apart(card, card.publish, seconds=1, begin=card.begin_sync).publish(1)  # type: ignore[arg-type]
    assert card.log == ["open 1", "engines begin 1", "publish 1", "engines finish 1"], "nobody asks for a version before it is open"
    card.log.clear()
    card.gate_open, card.learner = True, True
    card.alone = lambda: None  # type: ignore[method-assign]  # they have cards of their own
    Apart(card, card.publish, seconds=1, begin=None).publish(2)  # type: ignore[arg-type]
    assert card.log == ["open 2", "publish 2", "engines load 2"]


def test_apart_runners_hear_of_weights_that_a_new_store_was_filled_with() -> None:
    card = Card()
    card.gate_open, card.alone = True, lambda: None  # type: ignore[method-assign]
    Apart(card, lambda version, opened: None, seconds=1, begin=card.begin_sync).publish(1)  # type: ignore[arg-type]  # its store had died: never opened
    assert card.log == ["engines load 1"]


def test_apart_a_failed_publish_still_hears_the_runners_out() -> None:
    card = Card()
    card.failing = {"publish 1"}
    with pytest.raises(LearnerError):
        Apart(card, card.publish, seconds=1, begin=card.begin_sync).publish(1)  # type: ignore[arg-type]
    assert card.log[-1] == "engines finish 1"


def test_a_runner_and_a_rank_have_one_bundle_and_so_one_card() -> None:
    settings = ["model.path=m", "data.train=t", "data.test=t", "rollout.num_runners=2", "grpo.driver_cpus=0.5"]
    settings += ["rollout.gpus_per_runner=0.5", "learner.gpus_per_rank=0.5", "rollout.cpus_per_runner=2"]
    apart = bundles(load(None, settings)).bundles
    assert apart == [{"CPU": 0.5}, *[{"CPU": 2.0, "GPU": 0.5}] * 2, *[{"CPU": 1.0, "GPU": 0.5}] * 2]
    assert bundles(load(None, [*settings, "learner.colocated=true"])).bundles == [{"CPU": 0.5}, *[{"CPU": 3.0, "GPU": 1.0}] * 2]
