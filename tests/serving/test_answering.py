"""Episodes as events and as completions, on a scripted policy and web."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
from PIL import Image

from mmsr_ray.agent.conversation import Parts
from mmsr_ray.agent.episode import EngineError, Generate, run_episode
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.tokens import Codec
from mmsr_ray.config import AgentConfig
from mmsr_ray.serving.answering import answer
from mmsr_ray.serving.completions import Frame, completion
from mmsr_ray.serving.errors import Refused
from mmsr_ray.serving.events import Answer, Event, Failed, Finished, Reason, Results, Search, Started
from mmsr_ray.types import Generation, ImageHit, Picture, Sampling, ToolFailure, ToolKind, ToolResult
from tests.agent.scripted import Script, Web, png, sample

LOOK = "<reason>I look.</reason><search><img></search>"
FIND = "<reason>I read.</reason><text_search>Paris mayor</text_search>"
SAY = "<reason>I know.</reason><answer>Paris</answer>"
LIMITS = AgentConfig(max_turn_tokens=256, prompts="brief")
FRAME = Frame("id", 1, "atlas")


@pytest.fixture(scope="session")
def codec(tiny_model: str) -> Codec:
    return Codec.load(tiny_model, min_pixels=56 * 56, max_pixels=112 * 112, thumbnail_max_pixels=56 * 56)


def parts(web: Web) -> Parts:
    return Parts(web, PromptSet.load("brief"), LIMITS, Sampling(0.0, 256))


def told(generate: Generate, codec: Codec, web: Web | None = None, image: bytes | None = None) -> list[Event]:
    async def collect() -> list[Event]:
        return [event async for event in answer(sample(image=image), "on_demand", generate, codec, parts(web or Web()))]

    return asyncio.run(collect())


def test_everything_that_happens_is_told_in_order(codec: Codec) -> None:
    events = told(Script(codec, [LOOK, FIND, SAY]), codec)
    kinds = [Started, Reason, Search, Results, Reason, Search, Results, Reason, Answer, Finished]
    assert [type(event) for event in events] == kinds
    assert events[2] == Search(ToolKind.IMAGE, "")
    assert events[5] == Search(ToolKind.TEXT, "Paris mayor")
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.outcome, end.searches, end.weight_version) == ("ok", 2, 3)


def test_being_observed_changes_nothing(codec: Codec) -> None:
    async def alone() -> int:
        trajectory = await run_episode(
            sample(), index=0, workflow="on_demand", generate=Script(codec, [LOOK, FIND, SAY]), tools=Web(), codec=codec,
            prompts=PromptSet.load("brief"), limits=LIMITS, sampling=Sampling(0.0, 256),
        )  # fmt: skip
        return trajectory.tokens.length

    end = told(Script(codec, [LOOK, FIND, SAY]), codec)[-1]
    assert isinstance(end, Finished)
    assert end.prompt_tokens + end.completion_tokens == asyncio.run(alone())


def test_a_completion(codec: Codec) -> None:
    whole = completion(FRAME, told(Script(codec, [LOOK, SAY]), codec))
    choice = whole["choices"][0]
    assert choice["message"]["content"] == "Paris"
    assert choice["message"]["reasoning_content"].startswith("I look.\n[image search]\n- Paris in spring\n")
    assert choice["finish_reason"] == "stop"
    assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + whole["usage"]["completion_tokens"]


@pytest.mark.parametrize(("turn", "reason"), [("no tags at all", "stop"), ("word " * 300, "length")])
def test_a_model_that_breaks_its_protocol_has_no_answer(codec: Codec, turn: str, reason: str) -> None:
    choice = completion(FRAME, told(Script(codec, [turn]), codec))["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", reason)
    assert choice["message"]["refusal"].startswith("the model gave no answer")


def test_broken_pictures_are_the_only_event(codec: Codec) -> None:
    (event,) = told(Script(codec, [SAY]), codec, image=b"no picture")
    assert isinstance(event, Failed)
    assert event.code == "bad_input"


async def dead(prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
    raise EngineError("secret inside")


async def bug(prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
    raise KeyError("secret inside")


@pytest.mark.parametrize(("generate", "code"), [(dead, "unavailable"), (bug, "internal")])
def test_what_breaks_inside_is_not_told_outside(codec: Codec, generate: Generate, code: str) -> None:
    events = told(generate, codec)
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert failed.code == code
    assert "secret" not in failed.message
    with pytest.raises(Refused):
        completion(FRAME, events)


def test_a_search_without_money(codec: Codec) -> None:
    broke = ToolResult(ToolKind.IMAGE, "", failure=ToolFailure.BUDGET)
    events = told(Script(codec, [LOOK, SAY]), codec, Web(image=broke))
    assert [event.code for event in events if isinstance(event, Failed)] == ["insufficient_quota"]


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_a_reader_that_leaves_ends_the_turn(codec: Codec, how: str) -> None:
    ended = asyncio.Event()

    async def forever(prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        raise AssertionError

    async def leave(act: Callable[[], object] | None = None) -> None:
        events = answer(sample(), "on_demand", forever, codec, parts(Web()))
        assert isinstance(await anext(events), Started)
        reading = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.05)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        if how == "close":
            await events.aclose()  # type: ignore[attr-defined]
        assert ended.is_set()

    asyncio.run(asyncio.wait_for(leave(), 10))


def test_one_topk_is_told(codec: Codec) -> None:
    web = Web()
    many = replace(web.image, hits=web.image.hits * 10)
    events = told(Script(codec, [LOOK, SAY]), codec, Web(image=many))
    (results,) = (event for event in events if isinstance(event, Results))
    assert len(results.hits) == LIMITS.topk


def test_thumbnails_are_written_anew_and_a_broken_one_costs_its_picture_alone(codec: Codec) -> None:
    web = Web()
    first = cast(ImageHit, web.image.hits[0])
    huge = replace(first, thumbnail=Picture(png(600, 600), "huge"))
    page = replace(first, thumbnail=Picture(b"<svg onload=alert(1)>", "page"))
    events = told(Script(codec, [LOOK, SAY]), codec, Web(image=replace(web.image, hits=(huge, page))))
    (results,) = (event for event in events if isinstance(event, Results))
    assert results.hits[1].thumbnail == ""
    written = Image.open(io.BytesIO(base64.b64decode(results.hits[0].thumbnail.partition(",")[2])))
    assert written.format == "PNG"
    assert written.width * written.height <= 56 * 56
