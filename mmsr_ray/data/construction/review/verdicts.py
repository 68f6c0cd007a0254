"""What a reviewer can say about a candidate, and what several of them together make of it. Pure.

The final verdict of a candidate, in this order:

1. Fewer first looks than asked for: open.
2. All first looks agree: their verdict. Two agree when the verdict is the same; edits must also give the same answer
   (`rewards.match.normalise`). Of agreeing edits the earliest gives the wording.
3. They differ: disputed, until somebody who gave no first look takes a second look, which sees the others' decisions without their
   names. The second look decides.

Withdrawn decisions count for nothing. A rejection needs a reason of the list, so that reasons can be counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from mmsr_ray.rewards.match import normalise

MAX_QUESTION, MAX_ANSWER, MAX_NOTE, MAX_ALIASES = 2_000, 300, 2_000, 50  # characters; of aliases, their number


class Verdict(StrEnum):
    ACCEPT = "accept"
    EDIT = "edit"
    REJECT = "reject"
    WITHDRAWN = "withdrawn"  # undone by its own author


class State(StrEnum):
    OPEN = "open"
    DISPUTED = "disputed"
    SETTLED = "settled"


REASONS = {  # by the digit that picks it; rules of spec §5.3 step 3
    "1": "the question names the concept or gives it away",
    "2": "can be answered without the picture",
    "3": "the answer is wrong or not in the page",
    "4": "several answers are right",
    "5": "the picture does not show the concept, or shows it badly",
    "6": "the answer will change soon",
    "7": "private, offensive or not free to use",
    "8": "the question is badly worded beyond a small edit",
    "9": "something else (say what)",
}
OTHER = REASONS["9"]


class ReviewError(ValueError):
    """Something about a review cannot be; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Words:
    """What an edit changes."""

    question: str
    answer: str
    aliases: tuple[str, ...] = ()

    def tidy(self) -> Words:
        """Outer spaces and empty or repeated aliases gone."""
        answer = self.answer.strip()
        others = [alias for raw in self.aliases if (alias := raw.strip()) and alias != answer]
        return Words(" ".join(self.question.split()), answer, tuple(dict.fromkeys(others)))


@dataclass(frozen=True, slots=True)
class Decision:
    """One verdict of one annotator about one candidate as it was shown (`content`: `stage.content_of`)."""

    id: str  # made by the browser, so that sending it twice is saving it once
    key: str
    annotator: str
    content: str
    verdict: Verdict
    words: Words = Words("", "")  # of an edit
    reason: str = ""  # of a rejection
    note: str = ""
    look: int = 1  # 2: the second look at a dispute
    version: int = 0  # counts the annotator's decisions about this candidate, from 1; 0 before it is stored
    seconds: float = 0.0  # the page was in front
    at: str = ""  # UTC, ISO 8601 to the millisecond, so that text order is time order

    @property
    def stance(self) -> str:
        """Equal where decisions agree."""
        if self.verdict is not Verdict.EDIT:
            return self.verdict.value
        return f"edit: {normalise(self.words.answer) or self.words.answer.strip().lower()}"


def complaint(decision: Decision, shown: Words) -> str:
    """What is wrong with a decision about a candidate that says `shown`; "" when nothing is."""
    words = decision.words
    if decision.look not in (1, 2):
        return f"look {decision.look} is neither 1 nor 2"
    if len(decision.note) > MAX_NOTE:
        return f"a note may have {MAX_NOTE} characters: shorten it"
    if decision.verdict is Verdict.REJECT:
        if decision.reason not in REASONS.values():
            return "a rejection needs one of the listed reasons"
        if decision.reason == OTHER and not decision.note.strip():
            return "say in the note what the reason is"
    if decision.verdict is Verdict.EDIT:
        if not words.question or not words.answer:
            return "an edited candidate needs a question and an answer"
        if len(words.question) > MAX_QUESTION or len(words.aliases) > MAX_ALIASES:
            return f"a question may have {MAX_QUESTION} characters and {MAX_ALIASES} other answers: shorten it"
        if max(len(text) for text in (words.answer, *words.aliases)) > MAX_ANSWER:
            return f"an answer may have {MAX_ANSWER} characters: shorten it"
        if words == shown.tidy():
            return "nothing was changed: accept it instead"
    return ""


def settle(decisions: Sequence[Decision], reviewers: int) -> tuple[State, Decision | None]:
    """State of one candidate by its current decisions, and the one that decides where it is settled."""
    current = sorted((d for d in decisions if d.verdict is not Verdict.WITHDRAWN), key=lambda d: (d.at, d.annotator))
    first = [d for d in current if d.look == 1]
    second = [d for d in current if d.look == 2]
    if len(first) < reviewers:
        return State.OPEN, None
    if len({d.stance for d in first}) == 1:
        return State.SETTLED, first[0]
    return (State.SETTLED, second[0]) if second else (State.DISPUTED, None)
