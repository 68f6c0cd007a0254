"""What a question needs, read off the rollouts of it by a policy that decides itself when to search (spec §5.3 step 7).

Promise: pure, and a label depends on the rollouts, not on their order. Rollouts that infrastructure broke are no evidence:
they are not among the attempts, and a question is dropped only when all k rollouts are there, so nothing that broke can
drop one. What is too few to decide is undecided, to be asked again.

A rollout goes one of four ways: it searches nothing, by image, by text, or both. The paper labels a question by the ways of
its right rollouts: "any correct without search: search-free; correct only with image search: image-required; only text:
text-required; only both: mix-required". It does not say what a question is whose right rollouts took several of the searching
ways. Here the way with the fewest kinds of search wins, since it was enough; between image alone and text alone, which are
equally many, the one with more right rollouts, then the one that fewer rollouts took in vain, then image.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmsr_ray.data.construction.balance_settings import BalanceConfig
from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.types import Need

UNDECIDED = "undecided"  # too many rollouts broke: asked again by the next submission
NONE_CORRECT = "no rollout correct"
UNSUPPORTED = "no way of answering has enough right rollouts"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One rollout that ended."""

    correct: bool
    image_searches: int
    text_searches: int

    @property
    def way(self) -> Need:
        """What a question would need that only this way answers."""
        if self.image_searches:
            return Need.MIX if self.text_searches else Need.IMAGE
        return Need.TEXT if self.text_searches else Need.SEARCH_FREE


@dataclass(frozen=True, slots=True)
class Label:
    """`need`, or why there is none: UNDECIDED, NONE_CORRECT or UNSUPPORTED. `support` right rollouts of k took the way of `need`."""

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
    enough = [way for way in right if right[way] >= max(config.min_support, config.min_success * taken[way])]
    if enough:
        need = min(enough, key=lambda way: (way.searches, -right[way], taken[way], way is not Need.IMAGE))
        return Label(need, support=right[need], confidence=right[need] / config.rollouts)
    if len(attempts) < config.rollouts:
        return Label(None, UNDECIDED)  # one of the broken rollouts might have been right
    return Label(None, UNSUPPORTED if right else NONE_CORRECT)


# ---------------------------------------------------------------------------------------------------- candidates


def from_json(text: str) -> list[Attempt]:
    """The attempts of `Candidate.attempts`. Raises ValueError when it is no such text."""
    try:
        entries: list[dict[str, Any]] = json.loads(text)
        return [Attempt(bool(e["correct"]), int(e["image_searches"]), int(e["text_searches"])) for e in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"these are no attempts ({error!r}): {text[:80]!r}") from error


def labelled(candidates: Iterable[Candidate], attempts: Mapping[str, str], config: BalanceConfig) -> Iterator[Candidate]:
    """Candidates with `need` and `attempts`, or dropped with the reason; those dropped before pass unchanged.

    `attempts`: key -> text for `Candidate.attempts`; a candidate without them is undecided.
    """
    for candidate in candidates:
        if not candidate.kept:
            yield candidate
            continue
        text = attempts.get(candidate.key, "[]")
        found = label(from_json(text), config)
        tried = replace(candidate, attempts=text)
        yield tried.dropped(found.reason, _seen(text)) if found.need is None else replace(tried, need=found.need.value)


def _seen(text: str) -> str:
    attempts = from_json(text)
    return f"{sum(attempt.correct for attempt in attempts)} of {len(attempts)} rollouts right"
