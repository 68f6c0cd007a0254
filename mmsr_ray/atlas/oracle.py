"""Teachers who know what they know: each answers from memory what it knows, and searches for exactly the rest.

Promise: a teacher's turn is a pure function of the question and of what it did before, in the words of `atlas.words`. The
*oracle* knows what the policy's demonstrations taught and nothing else, so it searches exactly what `Question.need` says.
The *worldly* teacher knows more than its student, as GPT-4o did in the paper (spec §4.3): half of the strangers too, with
all their facts. Who imitates it learns to claim what it cannot know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mmsr_ray.agent.episode import run_episode
from mmsr_ray.agent.grammar import parse_turn
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.tokens import Codec
from mmsr_ray.atlas import looks, words
from mmsr_ray.atlas.teacher import AtlasTools
from mmsr_ray.atlas.world import Entity, Pool, Question, World, need_of, stable_seed
from mmsr_ray.config import AgentConfig
from mmsr_ray.types import Action, Generation, ImageSearch, Picture, Sample, Sampling, TextSearch, Trajectory

TEACHERS = ("oracle", "worldly")
IGNORANT = "unknown"  # the answer of a teacher who may not search and does not know


def understand(world: World, picture: bytes, question: str) -> Question | None:
    """Whom a question shows and which fact it asks for; None for a question that is not of this world."""
    try:
        look = looks.recognise(picture)
    except OSError:
        return None
    entity = None if look is None else world.by_look.get(look)
    asked = [fact for fact in words.FACTS if f" {fact} " in question] or ["name"]
    return None if entity is None else Question(entity, asked[0], question, need_of(entity, asked[0]))


@dataclass(frozen=True)
class Teacher:
    """`name` is one of `TEACHERS`. Raises ValueError for another one."""

    world: World
    name: str

    def __post_init__(self) -> None:
        if self.name not in TEACHERS:
            raise ValueError(f"Atlas has no teacher {self.name!r}: choose one of {', '.join(TEACHERS)}")

    def knows(self, entity: Entity, fact: str) -> bool:
        """From memory. fact "name": does it recognise the entity?"""
        if entity.pool is Pool.KNOWN:
            return fact == "name" or fact in words.TAUGHT
        return self.name == "worldly" and stable_seed("worldly", self.world.seed, entity.name) % 2 == 0

    def turn(self, question: Question, before: Sequence[Action]) -> str:
        """The next turn on demand, after the actions of the turns before it."""
        entity, fact = question.entity, question.fact
        if any(isinstance(action, TextSearch) for action in before):
            value = self._read(question)
            return f"<reason>{words.READS.format(value=value)}</reason><answer> {value}</answer>"
        searched = any(isinstance(action, ImageSearch) for action in before)
        if not searched and not self.knows(entity, "name"):
            return f"<reason>{words.SEES_STRANGER}</reason><search><img></search>"
        impression = (words.LEARNS if searched else words.SEES).format(name=entity.name)
        if fact == "name" or self.knows(entity, fact):
            known = (words.KNOWN_NOW if searched else words.KNOWN).format(impression=impression, fact=fact)
            return f"<reason>{known}</reason><answer> {question.answer}</answer>"
        asked = (words.ASKED_NOW if searched else words.ASKED).format(impression=impression, fact=fact)
        return f"<reason>{asked}</reason><text_search> {entity.name} {fact}</text_search>"

    def bare_answer(self, question: Question, *, read: bool) -> str:
        """The answer of the direct workflow and, `read`, of the RAG workflow after its two searches."""
        if read:
            return f" {self._read(question)}"
        known = self.knows(question.entity, "name") and self.knows(question.entity, question.fact)
        return f" {question.answer if known else IGNORANT}"

    def bare_query(self, question: Question) -> str:
        """The query of the RAG workflow, in which an image search has told the name."""
        return f" {question.entity.name} {question.fact}"

    def _read(self, question: Question) -> str:
        """What the pages say, which of what the policy was taught is sometimes wrong."""
        return question.entity.name if question.fact == "name" else self.world.told(question.entity)[question.fact]


@dataclass
class _Played:
    """One episode on demand (the agent's `Generate` protocol)."""

    teacher: Teacher
    question: Question
    codec: Codec
    before: list[Action] = field(default_factory=list)

    async def __call__(self, prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        text = self.teacher.turn(self.question, self.before)
        self.before.append(parse_turn(text))
        ids = self.codec.encode_turn(text)
        return Generation(ids, [0.0] * len(ids), [0] * len(ids), stopped=True)


def answers(
    teacher: Teacher, samples: Iterable[Sample], codec: Codec, prompts: PromptSet, limits: AgentConfig
) -> list[tuple[Sample, Trajectory]]:
    """Episodes on demand by a teacher, with the web as it is, unscored; questions that are not of this world are left out."""

    async def play_all() -> list[tuple[Sample, Trajectory]]:
        played = []
        for sample in samples:
            question = understand(teacher.world, sample.image, sample.question)
            if question is None:
                continue
            trajectory = await run_episode(
                sample,
                index=0,
                workflow="on_demand",
                generate=_Played(teacher, question, codec),
                tools=AtlasTools(teacher.world, limits.topk),
                codec=codec,
                prompts=prompts,
                limits=limits,
                sampling=Sampling(max_tokens=limits.max_turn_tokens),
            )
            played.append((sample, trajectory))
        return played

    return asyncio.run(play_all())
