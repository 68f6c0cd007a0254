from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.evaluation.kappa import agreement, cohen, fleiss

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


# ---------------------------------------------------------------------------------------------------- more categories, more raters

CATEGORIES = st.sampled_from("abc")


@given(PAIRS)
def test_cohen_of_two_categories_is_the_kappa_of_yes_and_no(pairs: list[tuple[bool, bool]]) -> None:
    assert cohen(pairs) == agreement(pairs)["kappa"]


def test_cohen_of_three_categories_by_hand() -> None:
    """Margins 10, 5, 5 and 8, 8, 4 of 20 items, 14 on the diagonal: chance (80 + 40 + 20) / 400 = 0.35, kappa 0.35 / 0.65."""
    table = {"aa": 7, "ab": 3, "ac": 0, "ba": 0, "bb": 4, "bc": 1, "ca": 1, "cb": 1, "cc": 3}
    pairs = [(pair[0], pair[1]) for pair, count in table.items() for _ in range(count)]
    assert cohen(pairs) == pytest.approx(0.35 / 0.65)


FLEISS = """0 0 0 0 14 | 0 2 6 4 2 | 0 0 3 5 6 | 0 3 9 2 0 | 2 2 8 1 1 | 7 7 0 0 0 | 3 2 6 3 0 | 2 5 3 2 2 | 6 5 2 1 0 | 0 2 2 3 7"""


def test_fleiss_of_the_textbook_example() -> None:
    """Ten subjects, fourteen raters, five categories: observed 0.378, by chance 0.213, kappa 0.210."""
    items = [[c for c, count in enumerate(map(int, row.split())) for _ in range(count)] for row in FLEISS.split("|")]
    assert fleiss(items) == pytest.approx(0.210, abs=5e-4)


@given(st.integers(2, 5).flatmap(lambda raters: st.lists(st.lists(CATEGORIES, min_size=raters, max_size=raters), max_size=30)))
def test_fleiss_is_bounded_and_one_on_full_agreement(items: list[list[str]]) -> None:
    kappa = fleiss(items)
    if kappa is None:
        assert len({category for given_ in items for category in given_}) <= 1
        return
    assert -1 / (len(items[0]) - 1) - 1e-12 <= kappa <= 1
    assert (kappa == 1) == all(len(set(given_)) == 1 for given_ in items)
    assert fleiss([list(reversed(given_)) for given_ in reversed(items)]) == kappa


@given(st.lists(st.tuples(CATEGORIES, CATEGORIES), max_size=60))
def test_cohen_is_bounded_and_one_on_full_agreement(pairs: list[tuple[str, str]]) -> None:
    kappa = cohen(pairs)
    if kappa is not None:
        assert -1 <= kappa <= 1
        assert (kappa == 1) == all(first == second for first, second in pairs)


@pytest.mark.parametrize("items", [["ab", "abc"], ["a", "b"]])
def test_fleiss_refuses_uneven_and_lone_raters(items: list[str]) -> None:
    with pytest.raises(ValueError, match="equally many raters"):
        fleiss(items)
