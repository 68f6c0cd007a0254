"""Matching of answers, spec §3.3."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.rewards.match import exact_match, normalise, sub_match


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  U.S.", "us"),
        ("1,000", "1000"),
        ("Jean-Luc", "jeanluc"),
        ("An apple a day\n", "apple day"),
        ("Theatre", "theatre"),
        ("Café", "café"),
        ("the", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "sub"),
    [
        ("the Eiffel Tower!", ["Eiffel tower"], True, True),
        ("It is the Eiffel Tower", ["Eiffel Tower"], False, True),
        ("Eiffel", ["Eiffel Tower"], False, False),
        ("ES", ["Spain", "ES"], True, True),
        ("", ["Spain"], False, False),
        ("", ["The"], False, False),
        ("anything", ["A"], False, False),
        ("a", ["A"], True, True),
        ("!!!", ["?"], False, False),
        ("x", [], False, False),
        ("", [""], False, False),
    ],
)
def test_matches(answer: str, golds: list[str], exact: bool, sub: bool) -> None:
    assert exact_match(answer, golds) is exact
    assert sub_match(answer, golds) is sub


@given(st.text(), st.lists(st.text(), max_size=3))
def test_exact_implies_sub_and_an_answer_matches_itself(answer: str, golds: list[str]) -> None:
    if exact_match(answer, golds):
        assert sub_match(answer, golds)
    if answer.strip():
        assert exact_match(answer, [*golds, answer])
    assert normalise(normalise(answer)) == normalise(answer)
