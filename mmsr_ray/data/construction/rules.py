"""What a written question must be (spec §5.3 step 3), checked by code. Pure.

Promise: a draft without a fault opens with who, what or where, refers to the picture, names neither the concept nor anything that
the page alone tells, and has a short answer that stands in the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mmsr_ray.rewards.match import normalise

MAX_QUESTION_CHARS = 200
COPIED_WORDS = 6  # in a row, from the page: the question quotes it

_OPENING = re.compile(r"(who|what|where)\b", re.IGNORECASE)
_PICTURE = re.compile(
    r"\b(this|these|(in|on|of) the (image|picture|photo|photograph)|the \w+ (shown|seen|pictured|depicted)|shown here|pictured here)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_NO_ANSWERS = frozenset("yes no unknown none unclear n/a not specified not mentioned".split()) | {"not specified", "not mentioned"}


@dataclass(frozen=True, slots=True)
class Draft:
    """A question and its answer as a model wrote them."""

    question: str
    answer: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """`reason` is one of a few and can be counted; `complaint` tells the author what to do better."""

    reason: str
    complaint: str


def faults(draft: Draft, concept: str, page: str, max_answer_words: int) -> list[Fault]:
    """What is wrong with a draft about `concept`, written from the text `page`; empty when nothing is."""
    return [*_form(draft), *_secrecy(draft, concept, page), *_answer(draft, page, max_answer_words)]


def _form(draft: Draft) -> Iterator[Fault]:
    question = draft.question
    if not _OPENING.match(question):
        yield Fault("opening", "The question must begin with Who, What or Where.")
    if not question.endswith("?") or question.count("?") > 1 or len(question) > MAX_QUESTION_CHARS or "\n" in question:
        yield Fault("not one question", f"Write one question in one sentence of at most {MAX_QUESTION_CHARS} characters.")
    if not _PICTURE.search(question):
        yield Fault("no picture", "The question must point at the picture, for example with the word 'this'.")


def _secrecy(draft: Draft, concept: str, page: str) -> Iterator[Fault]:
    question, told = normalise(draft.question), normalise(page)
    if names(draft.question, concept):
        yield Fault("names the concept", "The question must not name what the picture shows; say 'this' and what kind of thing it is.")
    elif leaked := _leak(draft.question, question, told):
        yield Fault("leaks the page", f"Leave out {leaked!r}: only someone who has read the page knows it, and it gives the picture away.")
    if _contains(question, normalise(draft.answer)):
        yield Fault("gives the answer", "The question must not contain its answer.")


def names(question: str, concept: str) -> bool:
    """Whether the question holds the concept's name, or a word of it written as a name ("Eiffel", but not "tower")."""
    if _contains(normalise(question), normalise(concept)):
        return True
    parts = {word.casefold() for word in _WORD.findall(concept)}
    return any(word.casefold() in parts for word in _proper_words(question))


def _leak(question: str, normalised: str, told: str) -> str:
    """A name, a number or a whole phrase that the question took from the page; "" when there is none."""
    for word in [*_proper_words(question), *re.findall(r"\d[\d.,]*", question)]:
        if _contains(told, normalise(word)):
            return word
    words = normalised.split()
    for start in range(len(words) - COPIED_WORDS + 1):
        phrase = " ".join(words[start : start + COPIED_WORDS])
        if _contains(told, phrase):
            return phrase
    return ""


def _proper_words(question: str) -> list[str]:
    """Words written with a capital, the first one of the sentence apart."""
    return [word for word in _WORD.findall(question)[1:] if word[0].isupper() and word != "I"]


def _answer(draft: Draft, page: str, max_words: int) -> Iterator[Fault]:
    answer = normalise(draft.answer)
    if not answer or answer in _NO_ANSWERS:
        yield Fault("no answer", "Give a fact as the answer; ask another question where the page does not tell one.")
    elif len(draft.answer.split()) > max_words:
        yield Fault("long answer", f"The answer must have at most {max_words} words.")
    elif not _contains(normalise(page), answer):
        yield Fault("not in the page", f"The answer {draft.answer!r} does not stand in the page: take it from there, word for word.")


def _contains(text: str, part: str) -> bool:
    """Whole words. Both normalised; nothing is in nothing."""
    return bool(part) and f" {part} " in f" {text} "
