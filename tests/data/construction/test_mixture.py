"""The mixture: its ratio, its even shares, and that it depends on nothing but keys, needs and seed."""

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mmsr_ray.data.construction.balance_settings import BalanceConfig
from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.data.construction.mixture import LEFT_OUT, REQUIRED, even_shares, mixed, mixture
from mmsr_ray.data.schema import DataError
from mmsr_ray.types import Need

pools = st.fixed_dictionaries({need: st.integers(0, 40) for need in Need})
ratios = st.sampled_from([0.5, 1.0, 2.0, 3.0])


def needs_of(pool: dict[Need, int]) -> dict[str, Need]:
    return {f"{need}-{i}": need for need, count in pool.items() for i in range(count)}


def counted(chosen: frozenset[str], needs: dict[str, Need]) -> dict[Need, int]:
    return {need: sum(needs[key] is need for key in chosen) for need in Need}


@given(pools, ratios, st.integers(0, 60), st.integers(0, 3), st.randoms())
def test_ratio_and_independence_of_order(pool: dict[Need, int], ratio: float, most: int, seed: int, rng: random.Random) -> None:
    config = BalanceConfig(required_per_free=ratio, questions=most)
    needs = needs_of(pool)
    required = sum(pool[need] for need in REQUIRED)
    assume(pool[Need.SEARCH_FREE] and required >= ratio and (most == 0 or most >= 1 + ratio))
    found = mixture(needs, config, seed)
    sizes = counted(found.chosen, needs)
    taken = sum(sizes[need] for need in REQUIRED)
    assert abs(taken - ratio * sizes[Need.SEARCH_FREE]) <= 0.5
    assert not most or len(found.chosen) <= most
    assert {need: sizes[need] + found.left_out[need] for need in Need} == pool
    if not most:  # the largest: another free question would ask for more required ones than there are, or is not there
        assert sizes[Need.SEARCH_FREE] == pool[Need.SEARCH_FREE] or (sizes[Need.SEARCH_FREE] + 1) * ratio > required
    shuffled = list(needs.items())
    rng.shuffle(shuffled)
    assert mixture(dict(shuffled), config, seed) == found


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(0, 100))
def test_even_shares(available: list[int], total: int) -> None:
    shares = even_shares(total, available)
    assert sum(shares) == min(total, sum(available))
    assert all(0 <= share <= have for share, have in zip(shares, available, strict=True))
    short = [share for share, have in zip(shares, available, strict=True) if share < have]
    assert not short or max(shares) <= min(short) + 1, "nobody gets more than others who have enough"


def test_another_seed_is_another_choice_and_all_may_be_kept() -> None:
    needs = needs_of(dict.fromkeys(Need, 50))
    one, other = (mixture(needs, BalanceConfig(questions=60), seed).chosen for seed in (0, 1))
    assert len(one) == len(other) == 60
    assert one != other
    assert mixture(needs, BalanceConfig(required_per_free=0), 0).chosen == needs.keys()
    assert len(mixture(needs, BalanceConfig(required_per_free=0, questions=40), 0).chosen) == 40
    assert mixture({}, BalanceConfig(required_per_free=0), 0).chosen == frozenset()


def test_a_side_that_is_missing_is_named() -> None:
    with pytest.raises(DataError, match=r"made of 9 and 0: collect more"):
        mixture(needs_of({Need.IMAGE: 9}), BalanceConfig(), 0)
    with pytest.raises(DataError, match=r"made of 0 and 9"):
        mixture(needs_of({Need.SEARCH_FREE: 9}), BalanceConfig(), 0)


def test_candidates_left_out_say_so() -> None:
    before = [Candidate("a", need="text_required"), Candidate("b", need="text_required"), Candidate("c").dropped("no image")]
    assert [c.status for c in mixed(before, frozenset("a"))] == ["kept", LEFT_OUT, "no image"]
