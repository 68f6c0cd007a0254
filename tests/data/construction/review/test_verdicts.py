"""What several people's verdicts make of a candidate."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.data.construction.review.agreement import overview
from mmsr_ray.data.construction.review.verdicts import OTHER, REASONS, Decision, State, Verdict, Words, complaint, settle

SHOWN = Words("Who is this?", "Ada", ("A.",))
ACCEPT = Decision("0" * 16, "k", "ann", "c", Verdict.ACCEPT, at="2026-01-01T00:00:00.000+00:00")
REJECT = replace(ACCEPT, annotator="ben", verdict=Verdict.REJECT, reason=REASONS["3"])


def edit(annotator: str, answer: str, **more: object) -> Decision:
    return replace(ACCEPT, annotator=annotator, verdict=Verdict.EDIT, words=Words("Who is she?", answer), **more)


def test_agreement_settles_and_difference_waits_for_a_second_look() -> None:
    assert settle([ACCEPT], 2) == (State.OPEN, None)
    assert settle([ACCEPT, replace(ACCEPT, annotator="ben")], 2) == (State.SETTLED, ACCEPT)
    assert settle([ACCEPT, REJECT], 2) == (State.DISPUTED, None)
    second = replace(REJECT, annotator="cem", look=2)
    assert settle([ACCEPT, REJECT, second], 2) == (State.SETTLED, second)
    assert settle([ACCEPT, replace(REJECT, verdict=Verdict.WITHDRAWN)], 2) == (State.OPEN, None)


def test_edits_agree_when_their_answers_do_and_the_earliest_gives_the_wording() -> None:
    early, late = edit("ben", "the Ada Lovelace!", at="1"), edit("ann", "ada  lovelace", at="2")
    assert settle([late, early], 2) == (State.SETTLED, early)
    assert settle([early, edit("ann", "Lovelace")], 2)[0] is State.DISPUTED
    assert edit("ann", "!!").stance != edit("ben", "??").stance  # answers of nothing but punctuation


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        (ACCEPT, ""),
        (REJECT, ""),
        (replace(REJECT, reason="I dislike it"), "listed reasons"),
        (replace(REJECT, reason=OTHER, note=" "), "say in the note"),
        (replace(REJECT, reason=OTHER, note="upside down"), ""),
        (edit("ann", "Grace"), ""),
        (edit("ann", ""), "needs a question and an answer"),
        (replace(ACCEPT, verdict=Verdict.EDIT, words=SHOWN), "nothing was changed"),
        (edit("ann", "x" * 301), "shorten it"),
        (replace(ACCEPT, note="x" * 2_001), "shorten it"),
        (replace(ACCEPT, look=3), "neither 1 nor 2"),
    ],
)
def test_what_may_be_decided(decision: Decision, said: str) -> None:
    assert said in complaint(decision, SHOWN) if said else complaint(decision, SHOWN) == ""


def test_the_overview_counts_and_compares_first_looks_alone() -> None:
    """ann and ben agree on 3 of 4: accept, accept, reject; chance is (3 * 2 + 1 * 2) / 16 = 1/2, so Cohen's kappa is 1/2."""
    ben = replace(ACCEPT, annotator="ben")
    items = {
        "1": [ACCEPT, ben],
        "2": [ACCEPT, ben],
        "3": [replace(REJECT, annotator="ann", seconds=8.0), REJECT],
        "4": [ACCEPT, REJECT, replace(REJECT, annotator="cem", look=2)],
        "5": [ACCEPT],
        "6": [],
    }
    found = overview(((key, *settle(given, 2), given) for key, given in items.items()), ["ann", "ben", "cem", "dan"], 2)
    assert (found.candidates, found.states) == (6, {"open": 2, "disputed": 0, "settled": 4})
    assert (found.verdicts, found.reasons) == ({"accept": 2, "reject": 2}, {REASONS["3"]: 2})
    (pair,) = found.pairs
    assert (pair.first, pair.second, pair.items, pair.agreement, pair.kappa) == ("ann", "ben", 4, 0.75, 0.5)
    assert found.fleiss_items == 4
    assert found.fleiss == pytest.approx((0.75 - 34 / 64) / (1 - 34 / 64))
    ann, _, cem, dan = found.progress
    assert (ann.first_looks, ann.second_looks, ann.seconds) == (5, 0, 8.0)
    assert (cem.first_looks, cem.second_looks, dan.first_looks) == (0, 1, 0)


VERDICTS = st.sampled_from([Verdict.ACCEPT, Verdict.REJECT])


@given(st.lists(st.tuples(VERDICTS, VERDICTS, VERDICTS), max_size=30))
def test_kappas_are_bounded_and_one_exactly_on_full_agreement(rows: list[tuple[Verdict, ...]]) -> None:
    items = [
        [replace(ACCEPT, key=str(n), annotator=name, verdict=v) for name, v in zip("abc", row, strict=True)] for n, row in enumerate(rows)
    ]
    found = overview(((str(n), *settle(given_, 3), given_) for n, given_ in enumerate(items)), [], 3)
    same = all(len(set(row)) == 1 for row in rows)
    assert found.fleiss is None or (-0.5 - 1e-12 <= found.fleiss <= 1 and (found.fleiss == 1) == same)
    for pair in found.pairs:
        assert pair.kappa is None or (-1 <= pair.kappa <= 1 and (pair.kappa == 1) == (pair.agreement == 1))
    assert found.states[State.DISPUTED] == sum(len(set(row)) > 1 for row in rows)
