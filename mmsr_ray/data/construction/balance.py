"""What a question needs, read off the rollouts of it by a policy that decides itself when to search (spec §5.3 step 7).

Promise: pure, and a label depends on the rollouts, not on their order. Rollouts that infrastructure broke are no evidence:
they are not among the attempts, and a question is dropped only when all k rollouts are there, so nothing that broke can
drop one. What is too few to decide is undecided, to be asked again.

A rollout goes one of four ways: it searches nothing, by image, by text, or both. The paper labels a question by the ways of
its right rollouts: "any correct without search: search-free; correct only with image search: image-required; only text:
text-required; only both: mix-required". It does not say what a question is whose right rollouts took several of the searching
ways. Here the way with the fewest kinds of search wins, since it was enough; between image alone and text alone, which are
equally many, the one with more right rollouts, then the one that fewer rollouts took in vain, then image.

By the paper's rule one right rollout without search makes a question search-free, and a policy that samples guesses right now
and then. Two settings ask for more, and what has not enough is left out, counted apart. `min_support` wants more right rollouts before
a way counts at all; a question then passes on to the next way. `min_success` doubts the label itself: of the rollouts that took its way,
so many must be right that with 90 % confidence the way answers more often than that. A doubtful question gets no other label, since a
way that is right now and then is neither what the question needs nor proof that more is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt

from mmsr_ray.data.construction.attempts import Attempt, from_json
from mmsr_ray.data.construction.balance_settings import BalanceConfig, Z
from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.types import Need

UNDECIDED = "undecided"  # too many rollouts broke: asked again by the next submission
NONE_CORRECT = "no rollout correct"
UNSUPPORTED = "no way of answering has enough right rollouts"
DOUBTFUL = "the way of answering is right too seldom"


@dataclass(frozen=True, slots=True)
class Label:
    """`need`, or why there is none: UNDECIDED, NONE_CORRECT, UNSUPPORTED or DOUBTFUL. `support` right rollouts of k took the way of `need`."""

    need: Need | None
    reason: str = ""
    support: int = 0
    confidence: float = 0.0  # support / k


def label(attempts: Sequence[Attempt], config: BalanceConfig) -> Label:
    """Of the surviving ones of `config.rollouts` rollouts. Raises ValueError when there are more."""
    if len(attempts) > config.rollouts:
        raise ValueError(f"{len(attempts)} attempts, but construction.balance.rollouts={config.rollouts}")
    if len(attempts) < config.min_survivors:
        return Label(None, UNDECIDED)
    taken = Counter(attempt.way for attempt in attempts)
    right = Counter(attempt.way for attempt in attempts if attempt.correct)
    enough = [way for way in right if right[way] >= config.min_support]
    if enough:
        need = min(enough, key=lambda way: (way.searches, -right[way], taken[way], way is not Need.IMAGE))
        if lower_bound(right[need], taken[need]) >= config.min_success:
            return Label(need, support=right[need], confidence=right[need] / config.rollouts)
    if len(attempts) < config.rollouts:
        return Label(None, UNDECIDED)  # one of the broken rollouts might have been right
    if enough:
        return Label(None, DOUBTFUL)
    return Label(None, UNSUPPORTED if right else NONE_CORRECT)


def lower_bound(right: int, taken: int) -> float:
    """How often at least something is right that was right `right` times of `taken` > 0: Wilson's bound, 90 % confidence, one-sided."""
    share, spread = right / taken, Z * Z / taken
    return (share + spread / 2 - sqrt(spread * (share * (1 - share) + spread / 4))) / (1 + spread)


# ---------------------------------------------------------------------------------------------------- candidates


def labelled(candidates: Iterable[Candidate], attempts: Callable[[str], str], config: BalanceConfig) -> Iterator[Candidate]:
    """Candidates with `need` and `attempts`, or dropped with the reason; those dropped before pass unchanged.

    `attempts`: from a key to the text for `Candidate.attempts` ("[]": none yet, so undecided).
    """
    for candidate in candidates:
        if not candidate.kept:
            yield candidate
            continue
        text = attempts(candidate.key)
        seen = from_json(text)
        found = label(seen, config)
        tried = replace(candidate, attempts=text)
        if found.need is None:
            yield tried.dropped(found.reason, f"{sum(attempt.correct for attempt in seen)} of {len(seen)} rollouts right")
        else:
            yield replace(tried, need=found.need.value)
