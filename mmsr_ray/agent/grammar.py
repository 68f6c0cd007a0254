"""The grammar of a model turn: one parser for rollout, reward, evaluation and serving, so they cannot disagree.

Promise: `parse_turn` never raises and is a pure function of the decoded text (spec §1.1, §1.7). Tags are matched
exactly (case-sensitive). `format_ok` is the strict judge of spec §3.4; `parse_turn` is deliberately more lenient: a
turn that ends in a search tag searches even without reasoning, and an answer pair anywhere in a turn answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mmsr_ray.types import Action, Answer, ImageSearch, Malformed, TextSearch

REASON_OPEN, REASON_CLOSE = "<reason>", "</reason>"
IMAGE_SEARCH = "<search><img></search>"
TEXT_OPEN, TEXT_CLOSE = "<text_search>", "</text_search>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
INFORMATION_OPEN, INFORMATION_CLOSE = "<information>", "</information>"
TRUNCATED = "hit its token limit"  # why a turn is malformed that did not come to its end

_TAG_NAMES = ("reason", "search", "img", "text_search", "answer", "information")
_FOREIGN = re.compile(r"<(?=/?(?:" + "|".join(_TAG_NAMES) + r")\s*/?>|\|)", re.IGNORECASE)


def parse_turn(text: str) -> Action:
    """What a model turn asks for. Lenient where the released weights are (module docstring); an empty query is malformed."""
    text = text.strip()
    if text.endswith(IMAGE_SEARCH):
        return ImageSearch()
    if text.endswith(TEXT_CLOSE):
        query = _last_pair(text, TEXT_OPEN, TEXT_CLOSE)
        if query is None:
            return Malformed("a text search that was never opened")
        return TextSearch(query) if query else Malformed("empty search query")
    answer = _last_pair(text, ANSWER_OPEN, ANSWER_CLOSE)
    if answer is not None:
        return Answer(answer)
    return Malformed("neither a search at its end nor an answer" if text else "empty turn")


def _last_pair(text: str, opening: str, closing: str) -> str | None:
    """Stripped text of the last `opening…closing` pair, over several lines if need be; None where there is none."""
    end = text.rfind(closing)
    while end >= 0:
        start = text.rfind(opening, 0, end)
        if start >= 0:
            return text[start + len(opening) : end].strip()
        end = text.rfind(closing, 0, end)
    return None


def path_of(actions: Iterable[Action]) -> str:
    """The path of a trajectory in the notation of `agent.allowed_paths`, such as "image,text,answer"."""
    names = {ImageSearch: "image", TextSearch: "text", Answer: "answer", Malformed: "malformed"}
    return ",".join(names[type(action)] for action in actions)


def format_ok(turn_texts: Sequence[str], allowed_paths: Iterable[str]) -> bool:
    """Spec §3.4: every turn is strictly of one kind and the kinds make an allowed path. Any number of turns."""
    return ",".join(_strict_kind(text.strip()) for text in turn_texts) in set(allowed_paths)


def _strict_kind(text: str) -> str:
    """ "image", "text" or "answer" when a stripped turn is exactly well-formed, else "malformed"."""
    reasoned = text.startswith(REASON_OPEN) and text.count(REASON_OPEN) == 1 and text.count(REASON_CLOSE) == 1
    if not reasoned:
        return "malformed"
    images = text.count(IMAGE_SEARCH)
    texts = (text.count(TEXT_OPEN), text.count(TEXT_CLOSE))
    answers = (text.count(ANSWER_OPEN), text.count(ANSWER_CLOSE))
    after_reason = text[text.index(REASON_CLOSE) + len(REASON_CLOSE) :]
    if (images, texts, answers) == (0, (0, 0), (1, 1)):
        return "answer" if ANSWER_OPEN in after_reason and text.endswith(ANSWER_CLOSE) else "malformed"
    if (images, texts, answers) == (1, (0, 0), (0, 0)):
        return "image" if after_reason.endswith(IMAGE_SEARCH) else "malformed"
    if (images, texts, answers) == (0, (1, 1), (0, 0)):
        return "text" if TEXT_OPEN in after_reason and isinstance(parse_turn(text), TextSearch) else "malformed"
    return "malformed"


def counted_searches(turn_texts: Sequence[str]) -> int:
    """Spec §3.5: turns that mention a search tag, each once; the last of several turns is never counted."""
    counted = turn_texts[:-1] if len(turn_texts) > 1 else turn_texts
    return sum(1 for text in counted if IMAGE_SEARCH in text or TEXT_OPEN in text)


def neutralise(text: str) -> str:
    """Foreign text (question, title, summary, URL) with our tags and `<|…|>` tokens broken by a space: inert, yet readable.

    Lone surrogates, which no tokenizer accepts, become question marks.
    """
    return _FOREIGN.sub("< ", text.encode("utf-8", "replace").decode("utf-8"))
