"""Near-duplicates within the set, and what the test sets would give away. Pure.

Promise: of several candidates that ask the same about like pictures, the first stays. No candidate stays whose picture is like one of a
test set, that asks a test set's concept for the same answer, or that asks a test set's question for its answer where that question
has but one ("When was it founded?" has many, so that it gives nothing away).
"""

from __future__ import annotations

import hashlib
from array import array
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
LEAKED_QUESTION = "in a test set: question and answer"
_SHINGLE = 3  # words


@dataclass
class Secrets:
    """What must not be given away: of the test sets."""

    pictures: Likenesses
    facts: set[tuple[str, str]] = field(default_factory=set)  # normalised concept and answer, where the set knows its concepts
    questions: dict[str, frozenset[str]] = field(default_factory=dict)  # normalised question -> its normalised answers
    general: set[str] = field(default_factory=set)  # those of `questions` that are asked for different answers

    def ask(self, question: str, answers: Iterable[str]) -> None:
        """A question of a test set."""
        asked, given = normalise(question), frozenset(map(normalise, answers))
        known = self.questions.get(asked, given)
        if known.isdisjoint(given):
            self.general.add(asked)
        self.questions[asked] = known | given

    def others_answer(self, question: str, answers: Iterable[str]) -> bool:
        """Whether this is a question of a test set with answers that are not the test set's."""
        given = self.questions.get(question)
        return given is not None and given.isdisjoint(map(normalise, answers))


def distinct(
    candidates: Callable[[], Iterable[Candidate]], marks: Mapping[str, int], secrets: Secrets, bits: int, likeness: float
) -> Iterator[Candidate]:
    """All candidates in their order, the superfluous ones dropped. `marks`: key -> fingerprint; a kept one without has no picture.

    `candidates()` starts reading them anew; they are read twice.
    """
    pictures = Likenesses(bits)
    frequencies, general = Counter[int](), set(secrets.general)
    for candidate in candidates():
        if candidate.kept:
            frequencies.update(_shingles(candidate.question))
            if secrets.others_answer(asked := normalise(candidate.question), candidate.answers):
                general.add(asked)
    questions = Questions(likeness, frequencies)
    for candidate in candidates():
        if not candidate.kept:
            yield candidate
        elif (mark := marks.get(candidate.key)) is None:
            yield candidate.dropped(UNREADABLE)
        elif secrets.pictures.find(mark) is not None:
            yield candidate.dropped(LEAKED_PICTURE)
        elif candidate.concept and any((normalise(candidate.concept), normalise(a)) in secrets.facts for a in candidate.answers):
            yield candidate.dropped(LEAKED_ANSWER)
        elif _gives_away(candidate, secrets, general):
            yield candidate.dropped(LEAKED_QUESTION)
        elif original := questions.add(candidate, pictures.add(mark)):
            yield candidate.dropped(DUPLICATE, f"of {original}")
        else:
            yield candidate


def _gives_away(candidate: Candidate, secrets: Secrets, general: set[str]) -> bool:
    asked = normalise(candidate.question)
    return asked not in general and not secrets.questions.get(asked, frozenset()).isdisjoint(map(normalise, candidate.answers))


class Questions:
    """Questions by the picture that they are about.

    Two about like pictures are the same when their answers are equal, or when the Jaccard similarity of their word shingles is at
    least `likeness`. Exact, by prefixes: of two sets that are so alike, the first elements in any fixed order have one in common. In the
    order of `frequencies`, rare ones first, few questions that are not alike meet there.
    """

    def __init__(self, likeness: float, frequencies: Mapping[int, int]) -> None:
        self._likeness, self._frequencies = likeness, frequencies
        self._answers: dict[tuple[int, str], str] = {}
        self._prefixes: dict[tuple[int, int], list[tuple[str, array[int]]]] = {}

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
        added = (candidate.key, array("Q", shingles))  # a seventh of what the set takes
        for shingle in prefix:
            self._prefixes.setdefault((picture, shingle), []).append(added)
        return ""

    def _alike(self, picture: int, prefix: list[int], shingles: frozenset[int]) -> str:
        for shingle in prefix:
            for key, others in self._prefixes.get((picture, shingle), ()):
                common = len(shingles.intersection(others))
                if common >= self._likeness * (len(shingles) + len(others) - common):
                    return key
        return ""


def _shingles(question: str) -> frozenset[int]:
    """Hashes of 64 bits: a set of many questions holds each of their shingles."""
    words = normalise(question).split()
    return frozenset(_hash(" ".join(words[i : i + _SHINGLE])) for i in range(max(1, len(words) - _SHINGLE + 1)))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")
