from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.learner.plan import Item, plan_update


def make_items(lengths: list[int], group_size: int = 4) -> list[Item]:
    return [
        Item(group=i // group_size, trajectory=i % group_size, advantage=1.0, length=n, sampled_tokens=max(1, n // 3))
        for i, n in enumerate(lengths)
    ]


@given(
    lengths=st.lists(st.integers(1, 400), min_size=0, max_size=60),
    world_size=st.integers(1, 4),
    budget=st.integers(50, 1000),
    minibatches=st.integers(1, 5),
    packing=st.sampled_from(["never", "always", "auto"]),
)
def test_every_plan_is_complete_and_even(lengths: list[int], world_size: int, budget: int, minibatches: int, packing: str) -> None:
    items = make_items(lengths)
    plan = plan_update(items, world_size=world_size, micro_batch_tokens=budget, minibatches=minibatches, packing=packing)
    assert sorted(plan.items, key=lambda i: (i.group, i.trajectory)) == items
    for mini in plan.minibatches:
        assert len(mini.ranks) == world_size
        assert len({len(rank) for rank in mini.ranks}) == 1
        inside = [item for rank in mini.ranks for portion in rank for item in portion.items]
        assert (mini.sequences, mini.sampled_tokens) == (len(inside), sum(i.sampled_tokens for i in inside))
        for portion in (portion for rank in mini.ranks for portion in rank):
            assert portion.tokens <= budget or len(portion.items) == 1
            assert packing != "never" or not portion.packed
        loads = [sum(i.length for p in rank for i in p.items) for rank in mini.ranks]
        assert max(loads) - min(loads) <= max(i.length for i in inside)
    for earlier, later in pairwise(plan.minibatches):
        groups = [{i.group for rank in mini.ranks for p in rank for i in p.items} for mini in (earlier, later)]
        assert max(groups[0]) < min(groups[1])


def test_rows_of_a_micro_batch_are_of_like_length() -> None:
    plan = plan_update(make_items([100, 10, 98, 12, 97, 11, 99, 9]), world_size=1, micro_batch_tokens=400)
    lengths = [sorted(i.length for i in portion.items) for portion in plan.minibatches[0].ranks[0]]
    assert lengths == [[97, 98, 99, 100], [9, 10, 11, 12]]


def test_packed_rows_of_a_group_stay_together_as_far_as_ranks_remain_balanced() -> None:
    """Rows of a group share their pictures, and the vision tower computes a picture once in a micro-batch."""
    lengths = [100, 60, 40, 30] * 8

    def groups_in(packing: str, world_size: int) -> list[int]:
        plan = plan_update(make_items(lengths), world_size=world_size, micro_batch_tokens=240, packing=packing)
        return [len({item.group for item in portion.items}) for rank in plan.minibatches[0].ranks for portion in rank]

    assert groups_in("always", 1) == [1] * 8
    assert groups_in("always", 4) == [1] * 8
    assert max(groups_in("never", 1)) > 1
    # one group for three ranks: whole it would leave two of them idle
    lone = plan_update(make_items(lengths[:4]), world_size=3, micro_batch_tokens=240, packing="always").minibatches[0]
    assert sorted(sum(item.length for portion in rank for item in portion.items) for rank in lone.ranks) == [60, 70, 100]


def test_groups_of_a_rank() -> None:
    plan = plan_update(make_items([10] * 8, group_size=1), world_size=2, micro_batch_tokens=1000)
    assert sorted(plan.groups_of(0) + plan.groups_of(1)) == list(range(8))
    assert len(plan.groups_of(0)) == 4


def test_more_ranks_than_rows_gives_empty_portions() -> None:
    plan = plan_update(make_items([50]), world_size=3, micro_batch_tokens=100)
    assert [len(rank[0].items) for rank in plan.minibatches[0].ranks] == [1, 0, 0]


def test_rows_without_sampled_tokens_are_left_out() -> None:
    silent = Item(group=0, trajectory=0, advantage=1.0, length=10, sampled_tokens=0)
    assert plan_update([silent], world_size=2, micro_batch_tokens=10).minibatches == ()


def test_packing_pays_where_lengths_differ() -> None:
    plan = plan_update(make_items([400, 20, 20, 20]), world_size=1, micro_batch_tokens=2000, packing="auto")
    assert plan.minibatches[0].ranks[0][0].packed
    plan = plan_update(make_items([100, 99, 98, 97]), world_size=1, micro_batch_tokens=2000, packing="auto")
    assert not plan.minibatches[0].ranks[0][0].packed


def test_impossible_arguments() -> None:
    with pytest.raises(ValueError, match="packing"):
        plan_update([], world_size=1, micro_batch_tokens=1, packing="sometimes")
    with pytest.raises(ValueError, match="at least 1"):
        plan_update([], world_size=0, micro_batch_tokens=1)


@pytest.mark.parametrize("packing", ["never", "always", "auto"])
def test_answers_of_one_token(packing: str) -> None:
    items = [Item(group=i // 4, trajectory=i % 4, advantage=1.0, length=2, sampled_tokens=1) for i in range(12)]
    plan = plan_update(items, world_size=2, micro_batch_tokens=3, minibatches=2, packing=packing)
    assert sorted(plan.items, key=lambda i: (i.group, i.trajectory)) == items
    assert [mini.sampled_tokens for mini in plan.minibatches] == [mini.sequences for mini in plan.minibatches]
    assert {len(portion.items) for mini in plan.minibatches for rank in mini.ranks for portion in rank} == {1}


def test_nothing_to_train_is_no_mini_batch() -> None:
    plan = plan_update([], world_size=2, micro_batch_tokens=10, minibatches=4)
    assert (plan.minibatches, plan.items, plan.groups_of(1)) == ((), [], [])
