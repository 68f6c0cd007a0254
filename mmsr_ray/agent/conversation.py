"""The state of one running episode and the few moves a workflow is made of.

Promise: a move either appends a whole message to the transcript or ends the episode by raising `Ended`; nothing is
ever cut. Every await is bounded by the episode's deadline. Pictures and tokens always go in together.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from mmsr_ray.agent.dialogue import Dialogue, Message
from mmsr_ray.agent.grammar import TRUNCATED
from mmsr_ray.agent.pieces import PictureError, Piece, QuestionError, SizedPicture
from mmsr_ray.agent.ports import EngineError, Reply, TooLong, Tools
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.seeds import seed_of
from mmsr_ray.config import AgentConfig
from mmsr_ray.types import (
    Action,
    ImageHit,
    ImageSearch,
    Malformed,
    Outcome,
    Sample,
    Sampling,
    TextHit,
    TextSearch,
    ToolKind,
    ToolResult,
    Turn,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Ended(Exception):
    """An episode that ended without an answer. Control flow between moves and `run_episode`, never seen outside."""

    def __init__(self, outcome: Outcome, detail: str):
        super().__init__(detail)
        self.outcome, self.detail = outcome, detail


@dataclass(frozen=True, slots=True)
class Parts:
    """What an episode runs with."""

    tools: Tools
    prompts: PromptSet
    limits: AgentConfig
    sampling: Sampling


class Conversation:
    """One episode in progress. `transcript` keeps its messages and asks the model."""

    def __init__(self, sample: Sample, transcript: Dialogue, parts: Parts):
        self.sample, self.transcript, self.parts = sample, transcript, parts
        self.turns: list[Turn] = []
        self.generate_seconds = 0.0
        self.tool_seconds = 0.0
        self._deadline = asyncio.get_running_loop().time() + parts.limits.deadline_seconds

    @property
    def question(self) -> str:
        return self.sample.question

    async def picture(self) -> SizedPicture:
        """The user's picture, resized off the event loop. Raises PictureError."""
        return await self._bounded(asyncio.to_thread(self.transcript.user_picture, self.sample.image), "preparing the picture")

    def ask(self, pieces: Sequence[Piece]) -> None:
        """The first message. Raises QuestionError when it is too long to be asked."""
        self.transcript.add_user(self.admit(pieces))

    def admit(self, pieces: Sequence[Piece]) -> Message:
        """The first message encoded, within the prompt's limit. Raises QuestionError."""
        delta = self.transcript.encode_user(pieces)
        limit = self.parts.limits.max_prompt_tokens
        if delta.expanded > limit:
            raise QuestionError(
                f"question and picture make {delta.expanded} tokens: at most {limit} are accepted (agent.max_prompt_tokens)"
            )
        return delta

    def tell(self, pieces: Sequence[Piece]) -> None:
        """A later message, or the first with search results in it; ends the episode when no token would be left to reply with."""
        delta = self.transcript.encode_user(pieces)
        if self.transcript.length + delta.expanded >= self.parts.limits.max_total_tokens:
            raise Ended(Outcome.POLICY_ERROR, "too long")
        self.transcript.add_user(delta)

    async def reply(self) -> str:
        """One model turn: sampled, appended, decoded. Ends the episode when the turn hit its limit or there is no room for one."""
        room = self.parts.limits.max_total_tokens - self.transcript.length
        if room < 1:
            raise Ended(Outcome.POLICY_ERROR, "too long")
        cap = min(self.parts.sampling.max_tokens, self.parts.limits.max_turn_tokens, room)
        sampling = replace(self.parts.sampling, max_tokens=cap, seed=seed_of(self.parts.sampling.seed, len(self.turns)))
        started = time.perf_counter()
        try:
            reply = await self._bounded(self.transcript.reply(sampling), "waiting for the engine")
        except EngineError as error:
            raise Ended(Outcome.INFRA_ERROR, f"engine: {error}") from error
        except TooLong as error:
            raise Ended(Outcome.POLICY_ERROR, "too long") from error
        finally:
            self.generate_seconds += time.perf_counter() - started
        if not reply.stopped:
            self._add_turn(reply, Malformed(TRUNCATED))
            raise Ended(Outcome.POLICY_ERROR, f"a turn {TRUNCATED}")
        self._add_turn(reply, Malformed("not parsed"))
        return reply.text

    def acted(self, action: Action) -> None:
        """Say what the last turn asked for."""
        self.turns[-1] = replace(self.turns[-1], action=action)

    def given(self, action: Action) -> None:
        """A step the workflow takes by itself, recorded as a turn of no tokens."""
        self.turns.append(Turn("", action, tokens=0, stopped=True))

    async def search(self) -> list[Piece]:
        """Do the search that the last turn asked for. Returns the results as pieces; ends the episode on a broken tool."""
        action = self.turns[-1].action
        started = time.perf_counter()
        try:
            result = await self._bounded(self._call(action), "waiting for a search")
        finally:
            self.tool_seconds += time.perf_counter() - started
        self.turns[-1] = replace(self.turns[-1], tool=result)
        if result.failure is not None and result.failure.infra:
            raise Ended(Outcome.INFRA_ERROR, f"{result.kind} search: {result.failure} {result.detail}".strip())
        hits = result.hits[: self.parts.limits.topk]
        if result.kind is ToolKind.TEXT:
            return self.parts.prompts.text_results([(h.url, h.title, h.summary) for h in hits if isinstance(h, TextHit)])
        images = [hit for hit in hits if isinstance(hit, ImageHit)]
        thumbnails = await self._bounded(asyncio.to_thread(self._thumbnails, images), "preparing thumbnails")
        return self.parts.prompts.image_results(thumbnails)

    def _call(self, action: Action) -> Awaitable[ToolResult]:
        match action:
            case ImageSearch():
                return self.parts.tools.image_search(self.sample.image, self.sample.image_url, self.question)
            case TextSearch(query):
                return self.parts.tools.text_search(query, self.question)
            case _:
                raise TypeError(f"{action} is no search")

    def _thumbnails(self, hits: Sequence[ImageHit]) -> list[tuple[str, SizedPicture]]:
        """Titles and thumbnails of the hits that can be shown; a broken thumbnail costs its hit."""
        shown: list[tuple[str, SizedPicture]] = []
        for hit in hits:
            try:
                shown.append((hit.title, self.transcript.thumbnail(hit.thumbnail.data)))
            except PictureError as error:
                _log.warning("dropped image hit %s: %s", hit.url or hit.title, error)
        return shown

    async def _bounded(self, work: Awaitable[_T], doing: str) -> _T:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await work
        except TimeoutError as error:
            raise Ended(Outcome.INFRA_ERROR, f"deadline of {self.parts.limits.deadline_seconds:g} s passed while {doing}") from error

    def _add_turn(self, reply: Reply, action: Action) -> None:
        self.turns.append(Turn(reply.text, action, reply.tokens, reply.stopped, seconds=reply.seconds))
