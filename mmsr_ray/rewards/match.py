"""String matching of answers (spec §3.3). Pure functions of strings.

Promise: an answer that normalises to nothing never matches by being nothing: where the gold answer is all articles or
punctuation ("A", "!!!"), the texts are compared before normalisation.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Lower-case, ASCII punctuation deleted ("U.S." -> "us"), whole-word articles dropped, whitespace collapsed."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Iterable[str]) -> bool:
    """Whether the normalised answer equals a normalised gold answer."""
    return any(_equal(answer, gold) for gold in golds)


def sub_match(answer: str, golds: Iterable[str]) -> bool:
    """Whether a normalised gold answer is contained in the normalised answer."""
    return any((gold_text in normalise(answer)) if (gold_text := normalise(gold)) else _equal(answer, gold) for gold in golds)


def _equal(answer: str, gold: str) -> bool:
    normalised = normalise(gold)
    if normalised:
        return normalise(answer) == normalised
    return bool(gold.strip()) and answer.strip().lower() == gold.strip().lower()
