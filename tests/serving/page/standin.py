"""The service's HTTP side for the page's tests: real episodes on Atlas, played by the oracle, told in the service's own events.

Some questions are played instead: "hang" never ends, "broken" fails as an engine does, "cut" loses the connection, "hostile" is what
a page or a model may write. Some keys are refused: "wrong" (401), "full" (429).
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

from aiohttp import web

from mmsr_ray.agent.chat import ChatDialogue
from mmsr_ray.agent.conversation import Parts
from mmsr_ray.agent.episode import converse
from mmsr_ray.agent.pictures import Geometry, PictureLimits, Pictures
from mmsr_ray.agent.ports import Reply
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.atlas.chat import say
from mmsr_ray.atlas.oracle import Teacher
from mmsr_ray.atlas.teacher import AtlasTools
from mmsr_ray.atlas.world import World
from mmsr_ray.config import AgentConfig
from mmsr_ray.serving.events import Answer, Event, Failed, Finished, Hit, Reason, Results, Search, Started
from mmsr_ray.serving.page import HEADERS, PATHS, page_file
from mmsr_ray.types import Answer as AnswerAction
from mmsr_ray.types import ImageHit, ImageSearch, Sample, Sampling, TextHit, TextSearch, ToolKind, ToolResult, Trajectory, Turn

MOST_BYTES = 30_000_000
LIMITS = AgentConfig(prompts="brief", topk=3, max_prompt_tokens=400, max_turn_tokens=64, max_total_tokens=4000)
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
HOSTILE_HITS = (
    Hit(HOSTILE, "javascript:window.hacked=1", "https://elsewhere.example/tracker.png", HOSTILE),
    Hit("\u202eevil", "https://fine.example/a?b=<c>", "data:image/svg+xml;base64,PHN2Zy8+", "x" * 3000),
)


class Standin:
    """`async with Standin() as service`; then `service.address`."""

    def __init__(self, pause: float = 0.01) -> None:
        self.world = World(0)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.left = asyncio.Event()  # a client went away
        self._pause = pause

    async def __aenter__(self) -> Standin:
        app = web.Application(client_max_size=MOST_BYTES)
        app.add_routes([web.get(path, self._page) for path in PATHS])
        app.add_routes([web.post("/v1/agent", self._agent)])
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _page(self, request: web.Request) -> web.Response:
        file = page_file(request.path)
        return web.Response(body=file.body, content_type=file.media_type, charset="utf-8", headers=HEADERS)

    async def _agent(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.keys.append(key)
        if key == "wrong":
            return _refused(401, "This API key is not known.")
        if key == "full":
            return _refused(429, "The service is full.", {"Retry-After": "7"})
        asked = await request.json()
        self.asked.append(asked)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        try:
            await self._stream(response, asked)
        except (asyncio.CancelledError, ConnectionResetError):
            self.left.set()
            raise
        return response

    async def _stream(self, response: web.StreamResponse, asked: dict[str, Any]) -> None:
        await _send(response, Started("run-1", asked["workflow"]))
        match asked["question"]:
            case "hang":
                while True:
                    await response.write(b": still here\n\n")
                    await asyncio.sleep(0.05)
            case "cut":
                await _send(response, Reason("I begin and"))
            case "broken":
                await _send(response, Failed("engine", "The engine is gone. Nothing was charged."))
                await _send(response, Finished("infra_error", 0, 0, 0, 0.1, 0.0, -1))
            case "hostile":
                for event in (Reason(HOSTILE), Search(ToolKind.TEXT, HOSTILE), Results(ToolKind.TEXT, HOSTILE_HITS), Answer(HOSTILE)):
                    await _send(response, event)
            case _:
                for event in await self.play(asked):
                    await _send(response, event)
                    await asyncio.sleep(self._pause)

    async def play(self, asked: dict[str, Any]) -> list[Event]:
        """A real episode's events after Started."""
        teacher = Teacher(self.world, "oracle")

        async def complete(messages: Sequence[dict[str, Any]], sampling: Sampling) -> Reply:
            text = say(teacher, messages)
            return Reply(text, len(text.split()), stopped=True, seconds=0.0)

        sample = Sample("asked", asked["question"], base64.b64decode(asked["image"].partition(",")[2]), ("",))
        pictures = Pictures(Geometry(14, 2), min_pixels=784, max_pixels=3136, thumbnail_max_pixels=784, limits=PictureLimits())
        parts = Parts(AtlasTools(self.world, LIMITS.topk), PromptSet.load(LIMITS.prompts), LIMITS, Sampling())
        talk = ChatDialogue(pictures, complete)
        began = asyncio.get_running_loop().time()
        trajectory = await converse(sample, index=0, workflow=asked["workflow"], transcript=talk, parts=parts)
        return list(_told(trajectory, asyncio.get_running_loop().time() - began))


def _told(trajectory: Trajectory, seconds: float) -> Iterator[Event]:
    for turn in trajectory.turns:
        yield from _turn(turn)
    searches = sum(turn.tool is not None for turn in trajectory.turns)
    sampled = sum(turn.tokens for turn in trajectory.turns)
    yield Finished(str(trajectory.outcome), 300, sampled, searches, seconds, 0.0, 0)


def _turn(turn: Turn) -> Iterator[Event]:
    if "<reason>" in turn.text:
        yield Reason(turn.text.partition("<reason>")[2].partition("</reason>")[0])
    match turn.action:
        case ImageSearch():
            yield Search(ToolKind.IMAGE, "")
        case TextSearch(query):
            yield Search(ToolKind.TEXT, query)
        case AnswerAction(text):
            yield Answer(text)
    if turn.tool is not None:
        yield _results(turn.tool)


def _results(result: ToolResult) -> Results:
    return Results(result.kind, tuple(_hit(hit) for hit in result.hits), str(result.failure or ""))


def _hit(hit: ImageHit | TextHit) -> Hit:
    url = f"https://atlas.example{hit.url}"  # Atlas without its server knows paths only
    if isinstance(hit, TextHit):
        return Hit(hit.title, url, summary=hit.summary)
    return Hit(hit.title, url, f"data:image/png;base64,{base64.b64encode(hit.thumbnail.data).decode()}")


def _refused(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "refused", "code": status}}, status=status, headers=headers)


async def _send(response: web.StreamResponse, event: Event) -> None:
    told = event.as_json()
    await response.write(f"event: {told['event']}\ndata: {json.dumps(told)}\n\n".encode())
