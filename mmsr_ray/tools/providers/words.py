"""Prose cut into sentences and words, in any script.

Promise: pure, linear in the length of the text. Scripts that write no spaces between words (Chinese, Japanese, Thai ...)
become overlapping pairs of characters, so that a query and a page meet without a dictionary.
"""

from __future__ import annotations

import re
import unicodedata

# An end of a sentence: a Western mark before white space, an Eastern one anywhere, a line break.
_END = re.compile(r"(?P<west>[.!?…]+[\"'”’)\]]*(?=\s))|[。！？｡।؟۔]+[\"'”’」』）)\]]*|\n+")
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘]*$")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # "J", "U.S", "e.g"
_LIST_NUMBER = re.compile(r"(?:^|[\n.!?] *)\d{1,2}$")
_NEXT = re.compile(r"[ \t]*(\S)?")
_ABBREVIATIONS = frozenset(
    "dr mr mrs ms prof st jr sr no nos vs etc fig figs eq vol vols pp approx ca cf inc ltd co corp dept est gen col sgt lt rev hon "
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
    "\uac00-\ud7af"  # Korean has spaces, but ties particles to its words
)
_WORD = re.compile(f"(?P<unspaced>[{_UNSPACED}]+)|[^\\W_{_UNSPACED}]+")


def sentences(text: str) -> list[str]:
    """The sentences of `text` in order, stripped. A line break ends one; an abbreviation or an initial does not."""
    found: list[str] = []
    start = 0
    for mark in _END.finditer(text):
        if mark["west"] is None or _ends(text, mark.start(), mark.end()):
            found.append(text[start : mark.end()].strip())
            start = mark.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def _ends(text: str, dot: int, after: int) -> bool:
    """Does the mark at `dot` end a sentence that goes on at `after`?"""
    following = _NEXT.match(text, after)
    if following is not None and following[1] is not None and following[1].islower():
        return False
    if text[dot : dot + 2] in ("..", "…") or text[dot] != ".":
        return True
    before = text[max(0, dot - 20) : dot]
    last = _LAST_WORD.search(before)
    word = last[0] if last is not None else ""
    return not (word.lower() in _ABBREVIATIONS or _INITIALS.fullmatch(word) or _LIST_NUMBER.search(before))


def words(text: str) -> list[str]:
    """The words of `text` in order, in one case and width; runs without spaces as pairs of neighbouring characters."""
    found: list[str] = []
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        run = match[0]
        if match["unspaced"] is None or len(run) < 3:
            found.append(run)
        else:
            found.extend(run[i : i + 2] for i in range(len(run) - 1))
    return found
