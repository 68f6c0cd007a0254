"""The search for the largest micro-batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.learner.fitting import PRECISION, Room, advice, budgets, largest
from mmsr_ray.learner.settings import LearnerConfig, LoRAConfig


@given(rest=st.integers(0, 50), slope=st.integers(1, 100), step=st.integers(0, 200), budget=st.integers(0, 5000), most=st.integers(1, 300))
def test_the_answer_fits_is_nearly_the_largest_and_memory_never_runs_out(rest: int, slope: int, step: int, budget: int, most: int) -> None:
    """`step` is what the first row costs once; the need of larger ones is a line, so the search may not overstep after the first."""
    tried: list[int] = []

    def need(size: int) -> int:
        tried.append(size)
        return rest + step + slope * size

    found = largest(need, rest=rest, budget=budget, most=most)
    truth = max((n for n in range(1, most + 1) if rest + step + slope * n <= budget), default=0)
    assert found <= truth
    assert truth - found <= max(1, found // PRECISION) or tried == [1]
    assert all(size <= truth for size in tried[1:])
    assert len(tried) <= 20
    if step == 0 and truth:
        assert found >= truth - max(1, found // PRECISION)


def test_running_out_of_memory_is_a_size_that_does_not_fit() -> None:
    tried: list[int] = []

    def need(size: int) -> float | None:
        tried.append(size)
        return None if size > 11 else size * 0.001  # nothing foretells it

    assert largest(need, rest=0.0, budget=1.0, most=1000) in (10, 11)
    assert tried[:5] == [1, 2, 4, 8, 16]


def test_nothing_fits_and_everything_fits() -> None:
    assert largest(lambda n: None, rest=0, budget=10, most=5) == 0
    assert largest(lambda n: 11.0, rest=0, budget=10, most=5) == 0
    assert largest(lambda n: 1.0, rest=11, budget=10, most=5) == 0, "at rest there is too much already"
    assert largest(lambda n: n, rest=0, budget=10, most=5) == 5
    assert largest(lambda n: n, rest=0, budget=10, most=1) == 1


def test_beyond_what_is_measured_a_line_tells() -> None:
    tried: list[int] = []

    def need(size: int) -> float:
        tried.append(size)
        return 10.0 + 3.0 * size

    assert 26 <= largest(need, rest=10.0, budget=100.0, most=500, measured=4) <= 30
    assert tried == [1, 2, 4]


def test_ranks_of_one_place_share_what_is_free() -> None:
    rooms = [Room("node", own=10, free=50, total=100, later=5), Room("node", own=20, free=50, total=100, later=0)]
    assert budgets(rooms, 1.0) == [30, 45]
    assert budgets(rooms, 0.9) == pytest.approx([25, 40], abs=1)
    assert budgets([Room("node/gpu", 10, 50, 100, 0), Room("node/other", 10, 5, 100, 0)], 0.9) == pytest.approx([50, 5], abs=1)


def test_advice_names_what_is_still_open() -> None:
    assert "gradient_checkpointing=true" in advice(320, LearnerConfig())
    spent = LearnerConfig(gradient_checkpointing=True, fused=True, offload="all", zero_stage=3, lora=LoRAConfig(rank=8))
    said = advice(12_288, spent)
    assert said.endswith("set, in this order, more ranks (learner.world_size) or a lower agent.max_total_tokens")
    assert "12288 tokens" in said


def test_a_search_needs_no_more_than_a_dozen_tries() -> None:
    tried: list[int] = []
    largest(lambda n: tried.append(n) or float(n), rest=0, budget=777, most=100_000)
    assert len(tried) < 14


@pytest.mark.parametrize("most", range(1, 20))
def test_the_cap_is_tried_itself(most: int) -> None:
    assert largest(lambda n: float(n), rest=0, budget=1e9, most=most) == most
