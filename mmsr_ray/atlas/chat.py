"""Atlas's teachers as a chat service would be: a conversation in OpenAI's shape in, the next turn out. Pure.

They go by what they are shown alone: the picture and the question in the first message, and what they said before. Which
workflow it is they tell from how the prompts begin.
"""

from __future__ import annotations

import base64
import re
from binascii import Error as Base64Error
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from mmsr_ray.agent.grammar import parse_turn
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.atlas.oracle import Teacher, understand

PROMPTS = ("brief", "standard")
_QUESTION = re.compile(r"What is the \w+ of this \w+\?|What is this \w+ called\?|What \w+ has this \w+\?")


class NotUnderstood(ValueError):
    """A conversation that no teacher can take part in."""


def say(teacher: Teacher, messages: Sequence[dict[str, Any]]) -> str:
    """The teacher's next turn. Raises NotUnderstood, and KeyError or TypeError for messages of another shape."""
    first = messages[0]["content"]
    found = _QUESTION.findall(text_of(first))
    question = understand(teacher.world, _picture(first), found[-1]) if found else None
    if question is None:
        raise NotUnderstood("the first message shows no question of Atlas")
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    workflow = _workflow(text_of(first))
    if workflow == "direct":
        return teacher.bare_answer(question, read=False)
    if workflow == "rag_query":
        return teacher.bare_answer(question, read=True) if said else teacher.bare_query(question)
    return teacher.turn(question, [parse_turn(text) for text in said])


def text_of(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def pictures_in(messages: Sequence[dict[str, Any]]) -> int:
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return sum(part["type"] == "image_url" for part in parts)


def _picture(content: str | list[dict[str, Any]]) -> bytes:
    for part in content if isinstance(content, list) else []:
        if part["type"] == "image_url":
            try:
                return base64.b64decode(part["image_url"]["url"].partition(";base64,")[2], validate=True)
            except Base64Error as error:
                raise NotUnderstood("the picture is no data URL") from error
    raise NotUnderstood("the first message has no picture")


@lru_cache
def _beginnings() -> tuple[tuple[str, str], ...]:
    """(how the prompt begins, its name), the longest first."""
    sets = [PromptSet.load(name) for name in PROMPTS]
    found = {prompts.templates[name].parts[0][1]: name for prompts in sets for name in ("round_1", "direct", "rag_query")}
    return tuple(sorted(found.items(), key=lambda item: -len(item[0])))


def _workflow(text: str) -> str:
    return next((name for beginning, name in _beginnings() if text.startswith(beginning)), "round_1")
