from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.evaluation.kappa import agreement

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60)


def test_a_table_by_hand() -> None:
    """20 of 50 both yes, 15 both no, 5 and 10 apart: agreement 0.7, by chance 0.5, so kappa 0.4."""
    table = agreement([(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15)
    assert [table[key] for key in ("items", "both_yes", "first_only", "second_only", "both_no")] == [50, 20, 5, 10, 15]
    assert table["agreement"] == pytest.approx(0.7)
    assert table["kappa"] == pytest.approx(0.4)


def test_what_is_undefined_is_none() -> None:
    assert (agreement([])["agreement"], agreement([])["kappa"]) == (None, None)
    always_yes = agreement([(True, True)] * 9)
    assert (always_yes["agreement"], always_yes["kappa"]) == (1.0, None)


@given(PAIRS)
def test_kappa_is_bounded_and_does_not_care_who_is_first(pairs: list[tuple[bool, bool]]) -> None:
    table, turned = agreement(pairs), agreement([(second, first) for first, second in pairs])
    assert table["both_yes"] + table["first_only"] + table["second_only"] + table["both_no"] == table["items"] == len(pairs)
    assert (table["kappa"], table["agreement"], table["first_only"]) == (turned["kappa"], turned["agreement"], turned["second_only"])
    negated = agreement([(not first, not second) for first, second in pairs])
    assert negated["kappa"] == table["kappa"]
    if table["kappa"] is not None:
        assert -1 <= table["kappa"] <= table["agreement"] + 1e-12
        assert (table["kappa"] == 1) == (table["agreement"] == 1)


@given(PAIRS)
def test_opposite_raters_never_agree(pairs: list[tuple[bool, bool]]) -> None:
    table = agreement([(first, not first) for first, _ in pairs])
    assert table["agreement"] in (None, 0.0)
    assert table["kappa"] is None or table["kappa"] <= 0
