"""One episode as a stream of events. Pure: any engine, any tools, no Ray.

Promise: it is `run_episode` that answers, the one that trains and evaluates; what is observed here changes nothing about it.
Closing the stream, or cancelling whoever reads it, cancels the episode, and with it the turn that the engine samples.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from mmsr_ray.agent.chat import data_url
from mmsr_ray.agent.conversation import Parts
from mmsr_ray.agent.episode import Generate, InputError, PictureError, Tools, run_episode
from mmsr_ray.agent.grammar import REASON_CLOSE, REASON_OPEN
from mmsr_ray.agent.tokens import Codec
from mmsr_ray.serving.events import Answer, Event, Failed, Finished, Hit, Reason, Results, Search, Started
from mmsr_ray.types import Generation, ImageHit, Outcome, Picture, Sample, Sampling, TextHit, ToolKind, ToolResult, Trajectory

logger = logging.getLogger(__name__)
_REASON = re.compile(re.escape(REASON_OPEN) + "(.*?)" + re.escape(REASON_CLOSE), re.DOTALL)
_UNAVAILABLE = "the model or a search it needs does not answer: try again later"


@dataclass(frozen=True, slots=True)
class Told:
    """Says Started before the first call of an episode, whichever it is, and everything else as it comes."""

    queue: asyncio.Queue[Event | None]
    started: Started
    said: list[Event]

    def __call__(self, event: Event) -> None:
        self.begin()
        self.queue.put_nowait(event)

    def begin(self) -> None:
        if not self.said:
            self.said.append(self.started)
            self.queue.put_nowait(self.started)


class ObservedGenerate:
    """The same generation; what the model reasons is told."""

    def __init__(self, generate: Generate, codec: Codec, tell: Told) -> None:
        self._generate, self._codec, self._tell = generate, codec, tell

    async def __call__(self, prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        self._tell.begin()
        generation = await self._generate(prompt_ids, pictures, sampling)
        for reason in _REASON.findall(self._codec.decode_turn(generation.token_ids)):
            self._tell(Reason(reason.strip()))
        return generation


class ObservedTools:
    """The same tools; searches and their results are told. At most `topk` results, thumbnails as the model sees them: decoded within
    limits and written anew, so that no byte of the web reaches a browser as a picture.
    """

    def __init__(self, tools: Tools, codec: Codec, topk: int, tell: Told) -> None:
        self._tools, self._codec, self._topk, self._tell = tools, codec, topk, tell

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        self._tell(Search(ToolKind.IMAGE, ""))
        return await self._told(await self._tools.image_search(picture_bytes, url, question))

    async def text_search(self, query: str, question: str) -> ToolResult:
        self._tell(Search(ToolKind.TEXT, query))
        return await self._told(await self._tools.text_search(query, question))

    async def _told(self, result: ToolResult) -> ToolResult:
        hits = await asyncio.to_thread(lambda: tuple(self._hit(hit) for hit in result.hits[: self._topk]))
        self._tell(Results(result.kind, hits, str(result.failure or "")))
        return result

    def _hit(self, hit: ImageHit | TextHit) -> Hit:
        if isinstance(hit, TextHit):
            return Hit(hit.title, hit.url, summary=hit.summary)
        try:
            picture = self._codec.thumbnail(hit.thumbnail.data)  # which the episode needs next, and finds kept
        except PictureError:
            return Hit(hit.title, hit.url)
        return Hit(hit.title, hit.url, thumbnail=data_url(picture))


async def answer(sample: Sample, workflow: str, generate: Generate, codec: Codec, parts: Parts) -> AsyncGenerator[Event, None]:
    """The events of one episode, in the order of events.py. `sample.uid` is the request's id. Never raises but for a cancellation."""
    async with aclosing(batches(sample, workflow, generate, codec, parts)) as told:
        async for batch in told:
            for event in batch:
                yield event


async def batches(sample: Sample, workflow: str, generate: Generate, codec: Codec, parts: Parts) -> AsyncGenerator[list[Event], None]:
    """As `answer`; what happens at the same time comes together, for each message between processes costs as much as a few tokens."""
    queue: asyncio.Queue[Event | None] = asyncio.Queue()
    tell = Told(queue, Started(sample.uid, workflow), [])
    began = time.monotonic()
    episode = asyncio.create_task(
        run_episode(
            sample,
            index=0,
            workflow=workflow,
            generate=ObservedGenerate(generate, codec, tell),
            tools=ObservedTools(parts.tools, codec, parts.limits.topk, tell),
            codec=codec,
            prompts=parts.prompts,
            limits=parts.limits,
            sampling=parts.sampling,
        )
    )
    episode.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        over = False
        while not over:
            batch = [await queue.get()]
            await asyncio.sleep(0)  # an episode that ends with what it has just told is over one step of the loop later
            while not queue.empty():
                batch.append(queue.get_nowait())
            over = batch[-1] is None
            yield [event for event in batch if event is not None] + (_end(episode, time.monotonic() - began) if over else [])
    finally:
        episode.cancel()
        await asyncio.wait([episode])  # until the engine has been told


def _end(episode: asyncio.Task[Trajectory], seconds: float) -> list[Event]:
    error = episode.exception()
    if isinstance(error, InputError):
        return [Failed("bad_input", str(error))]
    if error is not None:
        logger.error("an episode broke", exc_info=error)
        return [Failed("internal", "this request met an error of the service")]
    trajectory = episode.result()
    return [_outcome(trajectory), finished(trajectory, seconds)]


def _outcome(trajectory: Trajectory) -> Event:
    if trajectory.answer is not None:
        return Answer(trajectory.answer)
    if trajectory.outcome is Outcome.POLICY_ERROR:
        return Failed("policy_error", f"the model gave no answer: {trajectory.detail}")
    logger.warning("episode %s: %s", trajectory.uid, trajectory.detail)
    if trajectory.out_of_money:
        return Failed("insufficient_quota", "the budget for searches is spent")
    return Failed("unavailable", _UNAVAILABLE)


def finished(trajectory: Trajectory, seconds: float) -> Finished:
    """The books of an episode; `seconds` is wall time."""
    tokens = trajectory.tokens
    sampled = int(tokens.loss_mask.sum())
    return Finished(
        outcome=str(trajectory.outcome),
        prompt_tokens=tokens.length - sampled,
        completion_tokens=sampled,
        searches=trajectory.calls(ToolKind.IMAGE) + trajectory.calls(ToolKind.TEXT),
        seconds=round(seconds, 3),
        cost_usd=sum(call.cost_usd for call in trajectory.paid_calls),
        weight_version=int(tokens.versions[tokens.loss_mask][-1]) if sampled else -1,
    )
