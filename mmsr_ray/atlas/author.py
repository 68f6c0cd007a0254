"""What the chat endpoint of Atlas does when it is asked in a JSON schema: write questions about a picture, or classify one. Pure.

It sees what a hosted model would see: the messages and the schema. It knows the world as a well-read model knows ours: whom the picture
shows, and what of the page is right. What the page has wrong it does not ask about, nor what only held-out questions may ask.
"""

from __future__ import annotations

import base64
import binascii
import json
import random
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from mmsr_ray.atlas import looks
from mmsr_ray.atlas.world import Entity, Pool, Question, World, stable_seed

REFUSAL = "I cannot help with that."
_KEPT = re.compile(r"Kept already: (.*)")
_COUNT = re.compile(r"\b(?:Write (\d+)|(\d+) questions)\b")
_ALSO = {"person": "people", "brand": "brands"}  # how a taxonomy may call a kind of entity, beside its own word


class Lapse(StrEnum):
    """Ways in which a model gets its answer wrong."""

    REFUSE = "refuse"
    RAMBLE = "ramble"  # prose instead of JSON
    INVENT = "invent"  # an answer that is not in the page
    TELL = "tell"  # a question that says the name


def reply(world: World, messages: Sequence[dict[str, Any]], form: str, schema: dict[str, Any], lapse: Lapse | None) -> str:
    """The text of the reply to a conversation; `form` is the name of the schema that is asked for."""
    if lapse is Lapse.REFUSE:
        return REFUSAL
    if lapse is Lapse.RAMBLE:
        return "What a lovely picture! There is so much to say about it that I do not know where to begin."
    if form == "category":
        return json.dumps({"category": _category(_text(messages), schema["properties"]["category"]["enum"])})
    return json.dumps({"questions": _questions(world, messages, lapse)})


def _questions(world: World, messages: Sequence[dict[str, Any]], lapse: Lapse | None) -> list[dict[str, Any]]:
    picture = _picture(messages)
    look = looks.recognise(picture) if picture else None
    entity = world.by_look.get(look) if look is not None else None
    if entity is None:
        return []
    text = _text(messages)
    asked = _KEPT.findall(text)
    wanted = int(next(filter(None, (_COUNT.findall(text) or [("", "1")])[-1])))
    rng = random.Random(stable_seed(world.seed, entity.name, len(picture), picture[-64:].hex()))
    facts = [fact for fact in _facts(world, entity) if fact == "name" or entity.told[fact] == entity.facts[fact]]
    rng.shuffle(facts)
    questions = [world.ask(entity, fact, rng) for fact in facts]
    fresh = [question for question in questions if not any(kept.startswith(question.text) for kept in asked)]
    return [_written(question, lapse) for question in fresh[:wanted]]


def _facts(world: World, entity: Entity) -> list[str]:
    """Facts that training questions may ask about."""
    split = entity.pool if entity.pool in (Pool.TRAIN, Pool.TEST) else Pool.TRAIN
    found = [fact for pairs in world.askable(split).values() for other, fact in pairs if other is entity]
    return found or [*entity.facts, "name"]


def _written(question: Question, lapse: Lapse | None) -> dict[str, Any]:
    text, answer = question.text, question.answer
    if lapse is Lapse.TELL:
        text = f"What is the {question.fact} of this {question.entity.category}, {question.entity.name}?"
    if lapse is Lapse.INVENT:
        answer = "Nobody Knows"
    return {"question": text, "answer": answer, "aliases": []}


def _category(text: str, categories: Sequence[str]) -> str:
    """The first category that has a word of the question; else the first of all."""
    asked = set(re.findall(r"[a-z]+", text.rpartition("Question:")[2].lower()))
    asked |= {_ALSO[word] for word in asked & _ALSO.keys()}

    def fits(name: str) -> bool:
        words = re.findall(r"[a-z]+", name.lower())
        return any(word in asked or word.removesuffix("s") in asked for word in words)

    return next(filter(fits, categories), categories[0])


def _text(messages: Sequence[dict[str, Any]]) -> str:
    """All that the user's messages and the task say."""
    parts = []
    for message in messages:
        content = message.get("content") or ""
        parts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return "\n".join(parts)


def _picture(messages: Sequence[dict[str, Any]]) -> bytes:
    """The first picture that was sent, b"" where there is none."""
    for message in messages:
        if isinstance(message.get("content"), list):
            for part in message["content"]:
                if part.get("type") == "image_url":
                    try:
                        return base64.b64decode(part["image_url"]["url"].partition(",")[2], validate=True)
                    except (binascii.Error, KeyError, TypeError):
                        return b""
    return b""
