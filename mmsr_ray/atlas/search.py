"""What the search services of Atlas know: reverse image search, text search, summaries. Pure functions of a World.

The HTTP web serves exactly these; demonstrations call them directly, so both see the same results (tested).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from mmsr_ray.atlas import looks
from mmsr_ray.atlas.world import Entity, World, stable_seed

_WORD = re.compile(r"[a-z]+")
FIRST_OWN_VIEW = 100  # of the pictures that an image search finds: views below belong to the pages
_STOP = frozenset("the a an of is it what this has in to and for name called".split())


@dataclass(frozen=True, slots=True)
class VisualMatch:
    title: str
    link: str  # path of the page
    thumbnail: str  # path of the picture


@dataclass(frozen=True, slots=True)
class OrganicResult:
    title: str
    link: str
    snippet: str


def keywords(text: str) -> set[str]:
    return {w for w in _WORD.findall(text.lower()) if w not in _STOP}


def lens(world: World, picture: bytes) -> list[VisualMatch]:
    """Pages that show what the picture shows, best first; empty when nothing looks like it."""
    look = looks.recognise(picture)
    entity = world.by_look.get(look) if look is not None else None
    if entity is None:
        return []
    return [VisualMatch(entity.name, path, f"/pictures/{entity.slug}/{i}.png") for i, path in enumerate(world.pages(entity))]


@lru_cache(maxsize=4096)
def _view(look: looks.Look, seed: int) -> bytes:
    return looks.draw(look, seed)


def thumbnail(world: World, entity: Entity, view: int) -> bytes:
    """PNG of one of the entity's pictures on the web; never one that a question shows."""
    return _view(entity.look, stable_seed(world.seed, "web", entity.slug, view))


def google(world: World, query: str) -> list[OrganicResult]:
    """Pages about the entity whose name the query names best; empty when it names none.

    Both words of a name beat one; among equals the order of the world decides.
    """
    matches = Counter(number for word in keywords(query) for number in world.numbers_by_word.get(word, ()))
    best = world.entities[min(matches, key=lambda number: (-matches[number], number))] if matches else None
    if best is None:
        return []
    return [OrganicResult(best.name, path, text[:80]) for path, text in world.pages(best).items()]


def sentences(text: str) -> list[str]:
    return [s.strip() for s in re.split(r"(?<=\.)\s+", text) if s.strip()]


def summarise(page: str, question: str, limit: int = 2) -> str:
    """The `limit` sentences of the page that share most words with the question, in the page's order."""
    found = sentences(page)
    asked = keywords(question)
    ranked = sorted(range(len(found)), key=lambda i: (-len(asked & keywords(found[i])), i))
    return " ".join(found[i] for i in sorted(ranked[:limit]))
