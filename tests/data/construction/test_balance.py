"""Labels from rollouts: the paper's rule, what it leaves open, and what broken rollouts may and may not do."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.data.construction.attempts import Attempt, from_json
from mmsr_ray.data.construction.balance import DOUBTFUL, NONE_CORRECT, UNDECIDED, UNSUPPORTED, label, labelled, lower_bound
from mmsr_ray.data.construction.balance_settings import BalanceConfig, Z, complaint, in_words
from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.types import Need

K8 = BalanceConfig()
WAYS = {"-": (0, 0), "i": (1, 0), "t": (0, 1), "m": (1, 1)}

attempts = st.builds(Attempt, st.booleans(), st.integers(0, 1), st.integers(0, 2))
configs = st.builds(
    BalanceConfig,
    rollouts=st.just(8),
    min_survivors=st.integers(4, 8),
    min_support=st.integers(1, 4),
    min_success=st.sampled_from([0.0, 0.3, 0.6]),
)


def rollouts(text: str) -> list[Attempt]:
    """One letter a rollout: - no search, i image, t text, m both; in capitals (or +) when it was right."""
    return [Attempt(letter in "+ITM", *WAYS[letter.lower().replace("+", "-")]) for letter in text]


@pytest.mark.parametrize(
    ("seen", "need", "support"),
    [
        ("--------", None, 0),
        ("iiiimmmt", None, 0),
        ("+-------", Need.SEARCH_FREE, 1),
        ("+MMMMMMM", Need.SEARCH_FREE, 1),  # the paper: any right one without search
        ("-IIIiiii", Need.IMAGE, 3),
        ("--TTTTtt", Need.TEXT, 4),
        ("mmMMiitt", Need.MIX, 2),
        ("IMMMMMMM", Need.IMAGE, 1),  # one search was enough
        ("TTTIIttt", Need.TEXT, 3),  # equally many searches: what was right more often
        ("TTIIttt-", Need.IMAGE, 2),  # as often: what fewer took in vain
        ("TTII----", Need.IMAGE, 2),
    ],
)
def test_the_rule_of_the_paper(seen: str, need: Need | None, support: int) -> None:
    found = label(rollouts(seen), K8)
    assert (found.need, found.support, found.confidence) == (need, support, support / 8)
    assert found.reason == ("" if need else NONE_CORRECT)


def test_a_lucky_guess_can_be_asked_for_company() -> None:
    twice = BalanceConfig(min_support=2)
    assert label(rollouts("+MMMMMMM"), twice).need is Need.MIX
    assert label(rollouts("++MMMMMM"), twice).need is Need.SEARCH_FREE
    assert label(rollouts("+-------"), twice).reason == UNSUPPORTED


@pytest.mark.parametrize(
    ("seen", "need"),
    [
        ("+++MMMMM", Need.SEARCH_FREE),
        ("++MMMMMM", None),  # twice right of two says too little
        ("+++-MMMM", None),  # three of four: often enough a guess
        ("++++++-M", Need.SEARCH_FREE),
        ("++++++--", None),
        ("IIImMMMM", Need.IMAGE),  # what the richer way does says nothing about this one
        ("IiMMMMMM", None),
        ("--MMMMMM", Need.MIX),
    ],
)
def test_a_label_whose_way_is_right_too_seldom_is_in_doubt(seen: str, need: Need | None) -> None:
    found = label(rollouts(seen), BalanceConfig(min_success=0.6))
    assert (found.need, found.reason) == (need, "" if need else DOUBTFUL)
    assert label(rollouts(seen), K8).need is not None


def test_the_bound_is_wilsons() -> None:
    for right, taken in ((1, 1), (3, 4), (7, 8), (1, 8)):
        bound, share = lower_bound(right, taken), right / taken
        assert bound < share  # where a share's deviation from the bound is z standard errors of the bound
        assert share - bound == pytest.approx(Z * (bound * (1 - bound) / taken) ** 0.5)


def test_too_few_survivors_decide_nothing() -> None:
    assert label(rollouts("+++++"), K8).reason == UNDECIDED
    assert label(rollouts("++++++"), K8).need is Need.SEARCH_FREE
    assert label(rollouts("-------"), K8).reason == UNDECIDED, "the one that broke might have been right"
    with pytest.raises(ValueError, match="9 attempts"):
        label(rollouts("+++++++++"), K8)


@given(st.lists(attempts, max_size=8), configs, st.randoms())
def test_the_order_of_rollouts_means_nothing(seen: list[Attempt], config: BalanceConfig, rng: random.Random) -> None:
    shuffled = list(seen)
    rng.shuffle(shuffled)
    assert label(shuffled, config) == label(seen, config)


@given(st.lists(attempts, min_size=8, max_size=8), configs, st.sets(st.integers(0, 7)))
def test_what_broke_drops_no_question(seen: list[Attempt], config: BalanceConfig, broken: set[int]) -> None:
    whole = label(seen, config)
    rest = label([attempt for i, attempt in enumerate(seen) if i not in broken], config)
    if rest.need is None and broken:
        assert rest.reason == UNDECIDED
    if whole.reason == NONE_CORRECT:
        assert rest.need is None
    if rest.need is not None:
        assert rest.support <= len(seen) - len(broken)
        assert any(attempt.correct and attempt.way is rest.need for attempt in seen)


def test_candidates_get_their_label_or_the_reason() -> None:
    def text(seen: str) -> str:
        entries = [{"correct": a.correct, "image_searches": a.image_searches, "text_searches": a.text_searches} for a in rollouts(seen)]
        return json.dumps(entries)

    given_ = [Candidate("a"), Candidate("b"), Candidate("c"), Candidate("d").dropped("no image")]
    attempts = {"a": text("mmMMiitt"), "b": text("iiiiiiii"), "d": text("++++++++")}
    found = list(labelled(given_, lambda key: attempts.get(key, "[]"), K8))
    assert [(c.need, c.status) for c in found] == [
        ("mix_required", "kept"),
        ("", NONE_CORRECT),
        ("", UNDECIDED),  # its rollouts have not come
        ("", "no image"),
    ]
    assert found[1].detail == "0 of 8 rollouts right"
    assert from_json(found[0].attempts) == rollouts("mmMMiitt")
    with pytest.raises(ValueError, match="no attempts"):
        from_json('[{"correct": true}]')


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (BalanceConfig(min_survivors=9), "min_survivors"),
        (BalanceConfig(min_support=7), "min_support"),
        (BalanceConfig(min_success=0.9), "min_success"),
        (BalanceConfig(direct=8), "direct"),
        (BalanceConfig(asks=0), "asks"),
        (BalanceConfig(required_per_free=-1), "required_per_free"),
        (BalanceConfig(deadline_seconds=0), "deadline_seconds"),
    ],
)
def test_impossible_settings_are_named(wrong: BalanceConfig, named: str) -> None:
    assert named in complaint(wrong)
    assert complaint(K8) == ""


def test_a_rule_is_told_in_words() -> None:
    assert in_words(K8) == "8 rollouts a question"
    assert in_words(BalanceConfig(direct=3, min_support=2, min_success=0.6)) == (
        "8 rollouts a question, 3 of them without tools; at least 2 right ones that searched as the label says; "
        "of those that searched so, with 90 % confidence more than 60% right"
    )
