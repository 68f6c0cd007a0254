"""Demonstrations for the warm start: episodes by the real `run_episode`, played by a scripted teacher.

Promise: they teach the grammar, the looks and names of known entities and their taught facts, how to write a query
and how to read results, but not *when* to search: the teacher's course of action is drawn without regard to need.
Where its course leaves it ignorant it guesses, as a policy would.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import dataclass, field

from mmsr_ray.agent.episode import run_episode
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.tokens import Codec
from mmsr_ray.atlas import search, words
from mmsr_ray.atlas.world import NOW, Entity, Pool, Question, World
from mmsr_ray.config import AgentConfig
from mmsr_ray.types import Generation, Group, ImageHit, Picture, Sampling, TextHit, ToolFailure, ToolKind, ToolResult

COURSES = (("answer",), ("image", "answer"), ("text", "answer"), ("image", "text", "answer"))
WORKFLOW_SHARES = {"on_demand": 0.78, "direct": 0.08, "rag": 0.14}


class AtlasTools:
    """The Atlas web's own searches without the wire, at any moment (the agent's `Tools` protocol)."""

    def __init__(self, world: World, topk: int, moment: int = NOW) -> None:
        self.world, self.topk, self.moment = world, topk, moment

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        sha = hashlib.sha256(picture_bytes).hexdigest()
        hits = []
        for match in search.lens(self.world, picture_bytes)[: self.topk]:
            _, slug, view = match.thumbnail.removesuffix(".png").rsplit("/", 2)
            data = search.thumbnail(self.world, self.world.by_slug[slug], int(view))
            hits.append(ImageHit(match.title, Picture(data, hashlib.sha256(data).hexdigest()), match.link))
        return ToolResult(ToolKind.IMAGE, sha, tuple(hits), None if hits else ToolFailure.NO_RESULTS)

    async def text_search(self, query: str, question: str) -> ToolResult:
        hits = []
        for found in search.google(self.world, query)[: self.topk]:
            page = self.world.pages(self.world.by_slug[found.link.rsplit("/", 1)[-1]], self.moment)[found.link]
            hits.append(TextHit(found.link, search.summarise(page, question), found.title))
        return ToolResult(ToolKind.TEXT, query, tuple(hits), None if hits else ToolFailure.NO_RESULTS)


@dataclass
class Teacher:
    """Plays one episode (the agent's `Generate` protocol): one scripted turn a call."""

    world: World
    question: Question
    course: tuple[str, ...]
    workflow: str
    codec: Codec
    rng: random.Random
    moment: int
    played: list[str] = field(default_factory=list)
    about: Entity | None = None  # whom the last text search asked about

    async def __call__(self, prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        text = self._bare_turn() if self.workflow != "on_demand" else self._turn()
        ids = self.codec.encode_turn(text)
        return Generation(ids, [0.0] * len(ids), [0] * len(ids), stopped=True)

    def _turn(self) -> str:
        """One turn: say what is seen or read, then take the course's next step, whatever was said."""
        step = self.course[len(self.played)]
        searched = "image" in self.played
        self.played.append(step)
        if self.about is not None:
            value = self._read(self.about)
            return f"<reason>{words.READS.format(value=value)}</reason><answer> {value}</answer>"
        subject = self._believed(searched)
        impression = self._impression(searched)
        if step == "image":
            return f"<reason>{impression}</reason><search><img></search>"
        if step == "text":
            self.about = subject
            asked = (words.ASKED_NOW if searched else words.ASKED).format(impression=impression, fact=self.question.fact)
            return f"<reason>{asked}</reason><text_search> {subject.name} {self.question.fact}</text_search>"
        known = (words.KNOWN_NOW if searched else words.KNOWN).format(impression=impression, fact=self.question.fact)
        return f"<reason>{known}</reason><answer> {self._remember(subject)}</answer>"

    def _impression(self, searched: bool) -> str:
        entity = self.question.entity
        if searched:
            return words.LEARNS.format(name=entity.name)
        return words.SEES.format(name=entity.name) if entity.pool is Pool.KNOWN else words.SEES_STRANGER

    def _bare_turn(self) -> str:
        if self.workflow == "direct":
            return f" {self._remember(self._believed(searched=False))}"
        self.played.append("query")
        entity = self.question.entity
        return f" {entity.name} {self.question.fact}" if len(self.played) == 1 else f" {self._read(entity)}"

    def _believed(self, searched: bool) -> Entity:
        """Whom the teacher takes it for: right for known entities and after an image search, else a guess."""
        entity = self.question.entity
        if searched or entity.pool is Pool.KNOWN:
            return entity
        return self.rng.choice(self.world.pool(Pool.KNOWN))

    def _read(self, subject: Entity) -> str:
        """What the pages about the subject say."""
        return subject.name if self.question.fact == "name" else self.world.told(subject, self.moment)[self.question.fact]

    def _remember(self, subject: Entity) -> str:
        """What the teacher says of the subject unread: the truth where it was taught, else a guess."""
        if self.question.fact == "name":
            return subject.name
        if subject.pool is Pool.KNOWN and self.question.fact in words.TAUGHT:
            return subject.facts[self.question.fact]
        return self.rng.choice(words.FACTS[self.question.fact])


def _question(world: World, rng: random.Random) -> Question:
    pool = Pool.KNOWN if rng.random() < 0.5 else Pool.DEMONSTRATED
    facts = ["name", *words.FACTS]
    return world.ask(rng.choice(world.pool(pool)), rng.choice(facts), rng)


async def _play(world: World, codec: Codec, prompts: PromptSet, limits: AgentConfig, number: int) -> Group:
    rng = random.Random(f"demonstration/{world.seed}/{number}")
    workflow = rng.choices(list(WORKFLOW_SHARES), list(WORKFLOW_SHARES.values()))[0]
    question = _question(world, rng)
    teacher = Teacher(world, question, rng.choice(COURSES), workflow, codec, rng, moment=number)
    sample = world.sample(question, f"demonstration_{number}")
    trajectory = await run_episode(
        sample,
        index=0,
        workflow=workflow,
        generate=teacher,
        tools=AtlasTools(world, limits.topk, moment=number),
        codec=codec,
        prompts=prompts,
        limits=limits,
        sampling=Sampling(max_tokens=limits.max_turn_tokens),
    )
    return Group(sample.uid, 0, sample, (trajectory,))


def demonstrations(world: World, codec: Codec, prompts: PromptSet, limits: AgentConfig, count: int, start: int = 0) -> list[Group]:
    """`count` demonstrations, numbered from `start`, each as the learner takes it: a group of one sealed trajectory.

    The number alone decides a demonstration, so they can be made in any order and in many processes.
    """

    async def play_all() -> list[Group]:
        return [await _play(world, codec, prompts, limits, number) for number in range(start, start + count)]

    return asyncio.run(play_all())
