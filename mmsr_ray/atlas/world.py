"""The world itself: entities, facts, pages and questions, all computed from one seed.

Promise: two worlds of one seed are equal, and what a question needs is known by construction. *Known* entities are
those the policy's demonstrations teach by name, look and `TAUGHT` facts; `LIVE` facts stand on the web alone. An
unknown look differs from every known one in at least two features, so that telling them apart is fair. Of what the
policy was taught, the web has a third wrong (`MISTAKEN`), as the web has; of all other facts it is right. Live facts
change: each demonstration was recorded at a moment of its own, so they cannot be learned by heart from those.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from mmsr_ray.atlas import looks, words
from mmsr_ray.types import Need, Sample

MISTAKEN = 1 / 3  # share of the taught facts of known entities that the web gets wrong: who knows does better not to ask

NOW = -1  # the moment at which the web is served and questions are asked


class Pool(StrEnum):
    KNOWN = "known"
    DEMONSTRATED = "demonstrated"  # unknown entities that demonstrations look up
    TRAIN = "train"  # unknown entities of RL questions
    TEST = "test"  # unknown entities of held-out questions


@dataclass(frozen=True, slots=True)
class Entity:
    name: str
    category: str
    look: looks.Look
    facts: dict[str, str]
    told: dict[str, str]  # the facts as the web tells them, which is sometimes wrong
    pool: Pool

    @property
    def slug(self) -> str:
        return self.name.lower().replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Question:
    entity: Entity
    fact: str  # a key of Entity.facts, or "name"
    text: str
    need: Need

    @property
    def answer(self) -> str:
        return self.entity.name if self.fact == "name" else self.entity.facts[self.fact]


def stable_seed(*parts: object) -> int:
    """A 32-bit seed that depends on nothing but the parts."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=4).digest(), "big")


class World:
    """`known`, `demonstrated`, `train` and `test` are the sizes of the four pools of entities."""

    def __init__(self, seed: int = 0, *, known: int = 24, demonstrated: int = 500, train: int = 192, test: int = 96) -> None:
        self.seed = seed
        self._rng = random.Random(f"atlas/{seed}")
        sizes = {Pool.KNOWN: known, Pool.DEMONSTRATED: demonstrated, Pool.TRAIN: train, Pool.TEST: test}
        names = [f"{a} {b}" for a in words.FIRST_NAMES for b in words.LAST_NAMES]
        if sum(sizes.values()) > len(names):
            raise ValueError(f"Atlas has {len(names)} names, {sum(sizes.values())} entities were asked for: lower the pool sizes")
        self._rng.shuffle(names)
        look_list = self._looks(known, sum(sizes.values()))
        pools = [pool for pool, size in sizes.items() for _ in range(size)]
        self.entities = [self._entity(name, look, pool) for name, look, pool in zip(names, look_list, pools, strict=False)]

    def _looks(self, known: int, total: int) -> list[looks.Look]:
        supply = looks.all_looks()
        self._rng.shuffle(supply)
        chosen: list[looks.Look] = []
        for look in supply:
            if len(chosen) < known:
                if all(look.distance(other) >= 2 for other in chosen):
                    chosen.append(look)
            elif all(look.distance(other) >= 2 for other in chosen[:known]):
                chosen.append(look)
            if len(chosen) == total:
                return chosen
        raise ValueError(f"Atlas has no {total} looks of which {known} stand apart: lower the pool sizes")

    def _entity(self, name: str, look: looks.Look, pool: Pool) -> Entity:
        facts = {fact: self._rng.choice(values) for fact, values in words.FACTS.items()}
        mistakes = {
            fact: self._rng.choice([v for v in values if v != facts[fact]])
            for fact, values in words.TAUGHT.items()
            if pool is Pool.KNOWN and self._rng.random() < MISTAKEN
        }
        return Entity(name, self._rng.choice(words.CATEGORIES), look, facts, facts | mistakes, pool)

    # ------------------------------------------------------------------------------------------------ lookups

    @cached_property
    def by_name(self) -> dict[str, Entity]:
        return {e.name: e for e in self.entities}

    @cached_property
    def by_slug(self) -> dict[str, Entity]:
        return {e.slug: e for e in self.entities}

    @cached_property
    def by_look(self) -> dict[looks.Look, Entity]:
        return {e.look: e for e in self.entities}

    @cached_property
    def numbers_by_word(self) -> dict[str, list[int]]:
        """Lower-case word of a name -> positions in `entities` of those who bear it."""
        index: dict[str, list[int]] = {}
        for number, entity in enumerate(self.entities):
            for word in entity.name.lower().split():
                index.setdefault(word, []).append(number)
        return index

    def pool(self, *pools: Pool) -> list[Entity]:
        return [e for e in self.entities if e.pool in pools]

    # ------------------------------------------------------------------------------------------------ pages

    def told(self, entity: Entity, moment: int = NOW) -> dict[str, str]:
        """The facts as the web tells them at a moment: live facts are others at every moment, `NOW` is the web's own."""
        if moment == NOW:
            return entity.told
        rng = random.Random(f"moment/{self.seed}/{entity.name}/{moment}")
        return entity.told | {fact: rng.choice(values) for fact, values in words.LIVE.items()}

    def pages(self, entity: Entity, moment: int = NOW) -> dict[str, str]:
        """Path -> text of the entity's two pages: the encyclopedia's and a journal's, in prose."""
        rng = random.Random(f"pages/{self.seed}/{entity.name}/{moment}")
        facts = list(self.told(entity, moment).items())
        rng.shuffle(facts)
        wiki = [words.INTRO.format(name=entity.name, category=entity.category)]
        wiki += [words.INFOBOX.format(name=entity.name, fact=fact, value=value) for fact, value in facts]
        rng.shuffle(facts)
        journal = [words.JOURNAL_INTRO.format(name=entity.name, category=entity.category)]
        journal += [rng.choice(words.PROSE).format(name=entity.name, fact=fact, value=value) for fact, value in facts]
        return {f"/wiki/{entity.slug}": " ".join(wiki), f"/journal/{entity.slug}": " ".join(journal)}

    # ------------------------------------------------------------------------------------------------ questions

    def ask(self, entity: Entity, fact: str, rng: random.Random) -> Question:
        templates = words.NAME_QUESTIONS if fact == "name" else words.FACT_QUESTIONS
        text = rng.choice(templates).format(category=entity.category, fact=fact)
        return Question(entity, fact, text, need_of(entity, fact))

    def askable(self, split: str) -> dict[Need, list[tuple[Entity, str]]]:
        """All (entity, fact) that a split may ask about, by need. `split` is "train" or "test"."""
        known, unknown = self.pool(Pool.KNOWN), self.pool(Pool(split))
        # A live fact that training asks about could be learned by heart from its rewards: held-out questions ask for others.
        parity = 0 if split == Pool.TRAIN else 1
        return {
            Need.SEARCH_FREE: [(e, fact) for e in known for fact in (*words.TAUGHT, "name")],
            Need.IMAGE: [(e, "name") for e in unknown],
            Need.TEXT: [(e, fact) for i, e in enumerate(known) for j, fact in enumerate(words.LIVE) if (i + j) % 2 == parity],
            Need.MIX: [(e, fact) for e in unknown for fact in words.FACTS],
        }

    def questions(self, split: str, count: int, required_per_free: float = 2.0) -> list[Question]:
        """A search-balanced set: `required_per_free` search-required questions to one search-free, the three
        required kinds in equal shares (spec §5.3 step 7)."""
        rng = random.Random(f"questions/{self.seed}/{split}")
        pairs = self.askable(split)
        share = required_per_free / (1 + required_per_free) / 3
        chosen: list[Question] = []
        for need in Need:
            size = count - 3 * round(count * share) if need is Need.SEARCH_FREE else round(count * share)
            chosen += [self.ask(*rng.choice(pairs[need]), rng) for _ in range(size)]
        rng.shuffle(chosen)
        return chosen

    def collected_questions(self, split: str, count: int) -> list[Question]:
        """A set as it was collected, before any balancing: everything that can be asked about is equally likely."""
        rng = random.Random(f"collected questions/{self.seed}/{split}")
        pairs = [pair for of_need in self.askable(split).values() for pair in of_need]
        return [self.ask(*rng.choice(pairs), rng) for _ in range(count)]

    def sample(self, question: Question, uid: str) -> Sample:
        """The question as a data set row, with a view of its entity that belongs to this uid alone."""
        return Sample(
            uid=uid,
            question=question.text,
            image=looks.draw(question.entity.look, stable_seed(self.seed, uid)),
            answers=(question.answer,),
            source="mmsearch_r1/atlas",
            need=question.need,
            category="search_free" if question.need is Need.SEARCH_FREE else "search_required",
        )

    def samples(self, split: str, count: int) -> list[Sample]:
        return [self.sample(question, uid) for uid, question in self.questions_by_uid(split, count).items()]

    def questions_by_uid(self, split: str, count: int) -> dict[str, Question]:
        """What `samples` asks, for whoever knows the world."""
        return {f"atlas_{split}_{i}": question for i, question in enumerate(self.questions(split, count))}

    def collected_samples(self, split: str, count: int) -> list[Sample]:
        return [self.sample(q, f"atlas_{split}_collected_{i}") for i, q in enumerate(self.collected_questions(split, count))]


def need_of(entity: Entity, fact: str) -> Need:
    """What answering needs, given what the demonstrations taught."""
    if entity.pool is Pool.KNOWN:
        return Need.TEXT if fact in words.LIVE else Need.SEARCH_FREE
    return Need.IMAGE if fact == "name" else Need.MIX
