"""Who gets prompts, who is waited for and who is started over, on a clock of the test's own."""

from __future__ import annotations

from functools import partial

import pytest

from mmsr_ray.algorithms.members import Members, Stage

LIMIT = 10.0


@pytest.fixture
def members() -> Members:
    """Runner 1 is the placement group's, 2 and 3 are elastic; all asked for at 0."""
    made = Members(start_seconds=LIMIT)
    made.ask([1], elastic=False, now=0.0)
    made.ask([2, 3], elastic=True, now=0.0)
    return made


def test_only_a_runner_with_the_newest_weights_gets_prompts(members: Members) -> None:
    members.answered(2, now=1.0)
    assert members.at(Stage.UP) == []
    assert members.up(2, now=4.0) == 4.0, "seconds since it was asked for"
    members.behind(2, now=5.0)
    assert members.at(Stage.UP) == [] and members.at(Stage.STARTING) == [2]
    assert members.up(2, now=7.0) == 2.0, "seconds since it fell behind"
    members.lost(2, now=8.0)
    members.answered(2, now=9.0)
    members.lost(2, now=9.5)  # its second life was short
    assert members.up(2, now=11.0) == 3.0, "since it was first lost"
    assert members.required() == [1]


def test_an_elastic_runner_without_a_node_is_never_started_over(members: Members) -> None:
    members.up(1, now=1.0)
    assert members.overdue(now=1_000_000.0) == []
    members.answered(3, now=1_000_000.0)
    assert members.overdue(now=1_000_000.0 + LIMIT) == []
    assert members.overdue(now=1_000_001.0 + LIMIT) == [3], "a start that takes too long is"
    members.asked_again(3, now=1_000_001.0 + LIMIT)
    assert members.overdue(now=2_000_000.0) == []


def test_a_required_runner_is_started_over_wherever_it_stays(members: Members) -> None:
    assert members.overdue(now=LIMIT + 1) == [1]
    members.asked_again(1, now=LIMIT + 1)
    assert members.overdue(now=LIMIT + 2) == []
    assert members.overdue(now=2 * LIMIT + 2) == [1]


def test_training_is_deserted_only_when_no_runner_of_either_kind_is_up(members: Members) -> None:
    members.up(1, now=0.0)
    members.up(2, now=0.0)
    members.lost(1, now=1.0)
    assert not members.deserted(now=1_000.0), "an elastic runner carries on alone"
    members.lost(2, now=1_000.0)
    assert not members.deserted(now=1_001.0)
    members.lost(2, now=1_005.0)  # a crash loop does not put it off
    assert members.deserted(now=1_002.0 + LIMIT)
    members.up(1, now=1_003.0 + LIMIT)
    assert not members.deserted(now=1_004.0 + LIMIT)
    members.lost(1, now=2_000.0)
    assert not members.deserted(now=2_001.0), "the time without any begins anew"


def test_an_elastic_runner_is_idle_when_there_was_no_work_for_it(members: Members) -> None:
    members.up(1, now=1.0)
    members.up(2, now=1.0)
    look = partial(members.idle, limit=3.0)
    assert [look(busy={2}, groups=9, now=now) for now in (1.0, 2.0, 3.0, 4.0, 5.0)] == [[]] * 5, "nine groups for two: the third is wanted"
    assert [look(busy={1}, groups=1, now=now) for now in (6.0, 7.0, 8.0)] == [[]] * 3
    assert look(busy={1}, groups=1, now=9.0) == [2, 3], "runner 1 is the placement group's"
    assert look(busy={2}, groups=2, now=9.5) == [3]
    members.released(3)
    assert look(busy=set(), groups=0, now=999.0) == [], "nobody looked, the learner was at work"
    assert look(busy=set(), groups=0, now=1001.0) == [2]
    assert members.required() == [1]
