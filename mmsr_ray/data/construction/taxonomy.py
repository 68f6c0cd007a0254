"""The kind of knowledge a question asks for (spec §5.4), and even sampling over the kinds. No Ray in here.

Promise: a kept candidate has a category of the closed list. Sampling depends on keys, categories and the seed alone, and no category
has more than its even share while another one with candidates left has less.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.data.construction.replies import BadReply, read_object, schema, text_in
from mmsr_ray.data.construction.services import Author, Reply
from mmsr_ray.data.construction.settings import ConstructionConfig

MAX_TOKENS = 60

TASK = """Say what kind of knowledge answers a question about a picture. Choose one of these categories:
{categories}
Reply in JSON: {{"category": "..."}}"""


async def classify(candidate: Candidate, author: Author, config: ConstructionConfig) -> list[Candidate]:
    """One candidate, with its category or dropped; one that has a category of the list keeps it. Raises ServiceFailed."""
    if candidate.category in config.categories:
        return [candidate]
    conversation: list[dict[str, Any]] = messages(candidate, config.categories)
    reason, detail = "category: none of the list", ""
    for _ in range(config.question_tries):
        reply = await author.ask(conversation, MAX_TOKENS, response_format(config.categories))
        if reply.refused:
            reason, detail = "category: refused", "Choose a category."
        else:
            try:
                return [replace(candidate, category=read_category(reply, config.categories))]
            except BadReply as bad:
                detail = str(bad)
        conversation = [*conversation, {"role": "assistant", "content": reply.text}, {"role": "user", "content": detail}]
    return [candidate.dropped(reason, detail)]


def messages(candidate: Candidate, categories: Sequence[str]) -> list[dict[str, Any]]:
    about = f"The picture shows: {candidate.concept}\n" if candidate.concept else ""
    return [
        {"role": "system", "content": TASK.format(categories="\n".join(f"- {name}" for name in categories))},
        {"role": "user", "content": f"{about}Question: {candidate.question}\nAnswer: {candidate.answer}"},
    ]


def response_format(categories: Sequence[str]) -> dict[str, Any]:
    return schema("category", {"category": {"type": "string", "enum": list(categories)}})


def read_category(reply: Reply, categories: Sequence[str]) -> str:
    """The category that a reply names: in JSON, or as the only one of the list in its prose. Raises BadReply."""
    try:
        said = text_in(read_object(reply.text), "category")
        found = [name for name in categories if name.casefold() == said.casefold()]
    except BadReply:
        found = [name for name in categories if name.casefold() in reply.text.casefold()]
    if len(found) != 1:
        raise BadReply('Name exactly one category of the list, word for word, in JSON: {"category": "..."}')
    return found[0]


def even_sample(items: Iterable[tuple[str, str]], total: int, seed: int) -> set[str]:
    """Keys of at most `total` of the (key, category) pairs, as evenly over the categories as they allow; 0: all."""
    by_category: dict[str, list[str]] = {}
    for key, category in items:
        by_category.setdefault(category, []).append(key)
    if total == 0:
        return {key for keys in by_category.values() for key in keys}
    left, chosen = total, set[str]()
    smallest_first = sorted(by_category.items(), key=lambda item: (len(item[1]), item[0]))
    for place, (_, keys) in enumerate(smallest_first):  # what a small category leaves goes to the larger ones
        share = left // (len(smallest_first) - place)
        drawn = sorted(keys, key=lambda key: _lot(seed, key))[:share]
        chosen.update(drawn)
        left -= len(drawn)
    return chosen


def _lot(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
