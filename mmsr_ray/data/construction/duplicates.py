"""Near-duplicates within the set, and what the test sets would give away. Pure.

Promise: of several candidates that ask the same about like pictures, the first stays. No candidate stays whose picture is like one of a
test set, or that asks a test set's concept for the same answer. Time grows with the number of candidates, not with its square.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil

from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.data.construction.fingerprints import Likenesses
from mmsr_ray.rewards.match import normalise

UNREADABLE = "picture unreadable"
DUPLICATE = "near-duplicate"
LEAKED_PICTURE, LEAKED_ANSWER = "in a test set: picture", "in a test set: concept and answer"
_SHINGLE = 3  # words


@dataclass
class Secrets:
    """What must not be given away: of the test sets."""

    pictures: Likenesses
    facts: set[tuple[str, str]] = field(default_factory=set)  # normalised concept and answer, where the set knows its concepts


def distinct(
    candidates: Callable[[], Iterable[Candidate]], marks: Mapping[str, int], secrets: Secrets, bits: int, likeness: float
) -> Iterator[Candidate]:
    """All candidates in their order, the superfluous ones dropped. `marks`: key -> fingerprint; a kept one without has no picture.

    `candidates()` starts reading them anew; they are read twice.
    """
    pictures = Likenesses(bits)
    questions = Questions(likeness, Counter(s for c in candidates() if c.kept for s in _shingles(c.question)))
    for candidate in candidates():
        if not candidate.kept:
            yield candidate
        elif (mark := marks.get(candidate.key)) is None:
            yield candidate.dropped(UNREADABLE)
        elif secrets.pictures.find(mark) is not None:
            yield candidate.dropped(LEAKED_PICTURE)
        elif candidate.concept and any((normalise(candidate.concept), normalise(a)) in secrets.facts for a in candidate.answers):
            yield candidate.dropped(LEAKED_ANSWER)
        elif original := questions.add(candidate, pictures.add(mark)):
            yield candidate.dropped(DUPLICATE, f"of {original}")
        else:
            yield candidate


class Questions:
    """Questions by the picture that they are about.

    Two about like pictures are the same when their answers are equal, or when the Jaccard similarity of their word shingles is at
    least `likeness`. Exact, by prefixes: of two sets that are so alike, the first elements in any fixed order have one in common. In the
    order of `frequencies`, rare ones first, few questions that are not alike meet there.
    """

    def __init__(self, likeness: float, frequencies: Mapping[str, int]) -> None:
        self._likeness, self._frequencies = likeness, frequencies
        self._answers: dict[tuple[int, str], str] = {}
        self._prefixes: dict[tuple[int, str], list[tuple[str, frozenset[str]]]] = {}

    def add(self, candidate: Candidate, picture: int) -> str:
        """The key of a question added before that is the same; "" where there is none: then this one is added."""
        answer = (picture, normalise(candidate.answer))
        shingles = _shingles(candidate.question)
        prefix = sorted(shingles, key=lambda s: (self._frequencies.get(s, 0), s))[
            : len(shingles) - ceil(self._likeness * len(shingles)) + 1
        ]
        found = self._answers.get(answer) or self._alike(picture, prefix, shingles)
        if found:
            return found
        self._answers[answer] = candidate.key
        for shingle in prefix:
            self._prefixes.setdefault((picture, shingle), []).append((candidate.key, shingles))
        return ""

    def _alike(self, picture: int, prefix: list[str], shingles: frozenset[str]) -> str:
        for shingle in prefix:
            for key, others in self._prefixes.get((picture, shingle), ()):
                if len(shingles & others) >= self._likeness * len(shingles | others):
                    return key
        return ""


def _shingles(question: str) -> frozenset[str]:
    words = normalise(question).split()
    return frozenset(" ".join(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1)))
