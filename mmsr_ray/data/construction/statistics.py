"""Counts over a built set, taken while it is written: what its card and its figures say.

Promise: pure; memory grows with the number of different values, not with the set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.types import Need

UNKNOWN = "unknown"
OTHERS = "all others"
PRIVATE = "a private address"


@dataclass
class Statistics:
    """Of one split. Keys are values as the data set has them; lengths are in words."""

    questions: int = 0
    category: Counter[str] = field(default_factory=Counter)  # search_free | search_required
    need: Counter[str] = field(default_factory=Counter)
    taxonomy: Counter[str] = field(default_factory=Counter)  # spec §5.4
    origin: Counter[str] = field(default_factory=Counter)
    source: Counter[str] = field(default_factory=Counter)  # host of the page that a picture comes from
    licence: Counter[str] = field(default_factory=Counter)
    review: Counter[str] = field(default_factory=Counter)
    question_words: Counter[int] = field(default_factory=Counter)
    answer_words: Counter[int] = field(default_factory=Counter)

    def add(self, candidate: Candidate) -> None:
        self.questions += 1
        self.category[category_of(candidate) or UNKNOWN] += 1
        self.need[candidate.need or UNKNOWN] += 1
        self.taxonomy[candidate.category or UNKNOWN] += 1
        self.origin[candidate.origin] += 1
        self.source[_public(candidate.page_url, urlsplit(candidate.page_url).hostname or candidate.source or UNKNOWN)] += 1
        self.licence[_public(candidate.licence, candidate.licence or UNKNOWN)] += 1
        self.review[candidate.review or "not reviewed"] += 1
        self.question_words[len(candidate.question.split())] += 1
        self.answer_words[len(candidate.answer.split())] += 1


def _public(url: str, said: str) -> str:
    """`said`, but PRIVATE where the URL lies on a machine that nobody else reaches: a card names no such addresses."""
    try:
        host = urlsplit(url).hostname or ""
        return PRIVATE if host == "localhost" or not ip_address(host).is_global else said
    except ValueError:  # the host has a name, or there is none
        return said


def category_of(candidate: Candidate) -> str | None:
    """FVQA's label; None for a question that was not balanced."""
    if not candidate.need:
        return None
    return "search_free" if candidate.need == Need.SEARCH_FREE else "search_required"


def mean(lengths: Counter[int]) -> float:
    """0 for none."""
    return sum(length * count for length, count in lengths.items()) / max(lengths.total(), 1)


def most_frequent(counts: Iterable[Counter[str]], most: int) -> list[str]:
    """The names of all counters by their count in all, then by name; what comes after `most` of them is OTHERS."""
    together: Counter[str] = sum((Counter(each) for each in counts), Counter())
    ordered = sorted(together, key=lambda name: (-together[name], name))
    return [*ordered[:most], *([OTHERS] if len(ordered) > most else [])]


def counts_of(names: Sequence[str], counts: Counter[str]) -> list[int]:
    """Of each of `most_frequent`; OTHERS has what belongs to none of them."""
    own = sum(counts[name] for name in names if name != OTHERS)
    return [counts.total() - own if name == OTHERS else counts[name] for name in names]
