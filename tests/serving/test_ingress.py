"""The ingress over HTTP, in this process: its real routes, guard and limits; behind it a scripted policy in place of Serve's handles."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import httpx
import openai
import pytest
from opentelemetry.trace import NoOpTracer
from ray import serve
from ray.exceptions import RayActorError

from mmsr_ray.agent.conversation import Parts
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.tokens import Codec
from mmsr_ray.config import AgentConfig, Config, to_dict
from mmsr_ray.serving.answering import batches
from mmsr_ray.serving.events import Event
from mmsr_ray.serving.ingress import Ingress, api
from mmsr_ray.serving.measures import Account
from mmsr_ray.serving.observers import Observers
from mmsr_ray.serving.ports import Question
from mmsr_ray.serving.settings import ServingConfig
from mmsr_ray.types import Sample
from tests.agent.scripted import Script, Web, png

URL = "data:image/png;base64," + base64.b64encode(png(56, 56)).decode()
BODY = {"question": "Who?", "image": URL}
KEY = {"authorization": "Bearer one"}
LOOK = "<reason>I look.</reason><search><img></search>"
SAY = "<reason>I know.</reason><answer>Paris</answer>"
MESSAGES: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Who?"}, {"type": "image_url", "image_url": {"url": URL}}]}]


@pytest.fixture(scope="session")
def codec(tiny_model: str) -> Codec:
    return Codec.load(tiny_model, min_pixels=56 * 56, max_pixels=112 * 112, thumbnail_max_pixels=56 * 56)


class Stream:
    """What a streaming handle returns."""

    def __init__(self, events: AsyncIterator[Any]) -> None:
        self._events, self.cancelled = events, False

    async def __anext__(self) -> Any:
        return await anext(self._events)

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A handle of the agent's deployment whose policy says the same two turns to everybody."""

    def __init__(self, codec: Codec, delay: float = 0.0) -> None:
        self._codec, self._delay, self.streams = codec, delay, list[Stream]()
        self.asked: list[Sample] = []
        self.run, self.ask = SimpleNamespace(remote=self._run), SimpleNamespace(remote=self._ask)
        self.ready = SimpleNamespace(remote=self._ready)

    def options(self, *, stream: bool) -> Handle:
        assert stream
        return self

    def _run(self, question: Question) -> Stream:
        sample, workflow, sampling = question.sample, question.workflow, question.sampling
        self.asked.append(sample)
        parts = Parts(Web(), PromptSet.load("brief"), AgentConfig(max_turn_tokens=256), sampling)
        self.streams.append(Stream(batches(sample, workflow, Script(self._codec, [LOOK, SAY], self._delay), self._codec, parts)))
        return self.streams[-1]

    def _ask(self, question: Question) -> Response:
        async def whole() -> list[Event]:
            events = self._run(question)._events
            return [event async for batch in events for event in batch]

        return Response(whole())

    def _ready(self) -> Response:
        async def nothing() -> list[Event]:
            return []

        return Response(nothing())


class Response:
    """What any other handle returns."""

    def __init__(self, answer: Coroutine[Any, Any, Any]) -> None:
        self._task = asyncio.ensure_future(answer)

    def __await__(self) -> Any:
        return self._task.__await__()

    def cancel(self) -> None:
        self._task.cancel()


def ingress(handle: Handle, weights: Any = None, keys: bool = True, **settings: Any) -> Any:
    config = Config(serving=ServingConfig(model_name="atlas", **settings))
    config.model.path = config.data.train = config.data.test = "x"
    entries = [f"ann:{hashlib.sha256(b'one').hexdigest()}"] if keys else []
    cls: Any = Ingress.__mro__[1]  # without what Serve adds for its replicas
    return cls(to_dict(config), handle, {"atlas": weights}, entries)


def client(monkeypatch: pytest.MonkeyPatch, handle: Handle, **settings: Any) -> httpx.AsyncClient:
    made = ingress(handle, **settings)
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(servable_object=made))
    return httpx.AsyncClient(transport=httpx.ASGITransport(api, raise_app_exceptions=False), base_url="http://here", headers=KEY)


def test_the_openai_client(monkeypatch: pytest.MonkeyPatch, codec: Codec) -> None:
    async def ask() -> None:
        async with client(monkeypatch, handle := Handle(codec)) as http:
            service = openai.AsyncOpenAI(
                base_url="http://here/v1", api_key="one", http_client=cast(Any, http), max_retries=0
            )  # types as another httpx
            assert [model.id async for model in service.models.list()] == ["atlas", "atlas:direct", "atlas:rag"]
            whole = await service.chat.completions.create(model="atlas", messages=MESSAGES)
            assert whole.choices[0].message.content == "Paris"
            assert str(whole.choices[0].message.to_dict()["reasoning_content"]).startswith("I look.\n[image search]\n")
            stream: Any = await service.chat.completions.create(
                model="atlas", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Paris"
            assert chunks[-1].usage == whole.usage
            assert handle.streams[-1].cancelled  # whatever still runs there ends

    asyncio.run(ask())


def test_who_may_not_ask_and_what(monkeypatch: pytest.MonkeyPatch, codec: Codec) -> None:
    counted: list[Account] = []

    async def ask() -> None:
        async with client(monkeypatch, Handle(codec), body_bytes=5_000) as http:
            ingress: Any = serve.get_replica_context().servable_object
            ingress._observers = Observers(counted.append, NoOpTracer())
            cases = [
                ({"headers": {"authorization": "Bearer two"}}, 401, "invalid_api_key"),
                ({"json": {"question": "Who?"}}, 400, "bad_request"),
                ({"json": BODY | {"x": "x" * 5_000}}, 413, "request_too_large"),
                ({"content": b"{}", "headers": {"content-type": "text/plain"}}, 400, "bad_request"),
                ({"json": BODY | {"image": "data:image/png;base64,AAAA"}}, 400, "bad_input"),
                ({"json": BODY | {"image": "http://127.0.0.1:9/x.png"}}, 400, "bad_input"),
            ]
            for request, status, code in cases:
                reply = await http.post("/v1/agent", **({"json": BODY} if "content" not in request else {}) | request)
                assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), request
            assert [account.outcome for account in counted] == [code for _, _, code in cases]  # also those who were not understood
            assert (await http.post("/admin/weights", json={"path": "/"})).status_code == 403
            lost = await http.get("/nowhere")
            assert (lost.status_code, lost.json()["error"]["type"]) == (404, "invalid_request_error")
            assert "access-control-allow-origin" not in (await http.get("/healthz", headers={"origin": "http://x"})).headers

    asyncio.run(ask())


def test_more_than_may_be_asked_is_429(monkeypatch: pytest.MonkeyPatch, codec: Codec) -> None:
    async def ask() -> None:
        async with client(monkeypatch, Handle(codec, 0.2), max_requests=1, requests_per_minute=3) as http:
            replies = await asyncio.gather(*(http.post("/v1/agent", json=BODY) for _ in range(3)))
            assert sorted(reply.status_code for reply in replies) == [200, 429, 429]
            assert all(reply.headers["retry-after"] for reply in replies if reply.status_code == 429)
            assert (await http.post("/v1/agent", json=BODY)).json()["error"]["code"] == "rate_limit_exceeded"

    asyncio.run(ask())


def test_a_service_that_stops_answers_who_is_inside_and_lets_nobody_in(monkeypatch: pytest.MonkeyPatch, codec: Codec) -> None:
    async def ask() -> None:
        async with client(monkeypatch, Handle(codec, 0.2)) as http:
            ingress: Any = serve.get_replica_context().servable_object
            asking = asyncio.create_task(http.post("/v1/agent", json=BODY))
            while not await ingress.inside():  # noqa: ASYNC110 (nothing signals it)
                await asyncio.sleep(0.01)
            await ingress.close()
            late, ready = await http.post("/v1/agent", json=BODY), await http.get("/readyz")
            for reply in (late, ready):
                assert (reply.status_code, reply.json()["error"]["code"], reply.headers["retry-after"]) == (503, "unavailable", "2")
            assert (await asking).status_code == 200
            assert await ingress.inside() == 0

    asyncio.run(ask())


def test_a_request_that_takes_too_long(monkeypatch: pytest.MonkeyPatch, codec: Codec) -> None:
    async def ask() -> None:
        async with client(monkeypatch, Handle(codec, 5.0), request_seconds=0.5) as http:
            reply = await http.post("/v1/chat/completions", json={"model": "atlas", "messages": MESSAGES})
            assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")

    asyncio.run(ask())


class Dying(Handle):
    """Its replica dies at the first call, before it says anything; or after it has."""

    def __init__(self, codec: Codec, after: int) -> None:
        super().__init__(codec)
        self._after, self.calls = after, 0

    def _run(self, question: Question) -> Stream:
        stream = super()._run(question)
        self.calls += 1
        return Stream(self._until_death(stream._events)) if self.calls == 1 else stream

    async def _until_death(self, batches: AsyncIterator[Any]) -> AsyncIterator[Any]:
        told = 0
        async for batch in batches:
            for event in batch:
                if told == self._after:
                    raise RayActorError
                told += 1
                yield [event]


def test_an_agent_that_dies_is_replaced_where_nobody_would_hear_things_twice(monkeypatch: pytest.MonkeyPatch, codec: Codec) -> None:
    async def ask(path: str, body: dict[str, Any], after: int) -> tuple[httpx.Response, int]:
        async with client(monkeypatch, handle := Dying(codec, after), requests_per_minute=0) as http:
            return await http.post(path, json=body), handle.calls

    chat = {"model": "atlas", "messages": MESSAGES}
    for after in (0, 1, 3):
        reply, calls = asyncio.run(ask("/v1/chat/completions", chat, after))
        assert (reply.json()["choices"][0]["message"]["content"], calls) == ("Paris", 2)
    for after, calls, end in ((0, 2, "finished"), (1, 2, "finished"), (3, 1, "failed")):
        reply, asked = asyncio.run(ask("/v1/agent", BODY, after))
        events = [json.loads(line.removeprefix("data: "))["event"] for line in reply.text.splitlines() if line]
        assert (events[-1], events.count("started"), asked) == (end, 1, calls)


def test_a_chat_goes_on_from_what_was_said(monkeypatch: pytest.MonkeyPatch, codec: Codec) -> None:
    """As a chat page sends it: a system message, every turn so far, the picture in the first."""
    said = [
        {"role": "system", "content": "Be kind."},
        *MESSAGES,
        {"role": "assistant", "content": "Paris"},
        {"role": "user", "content": "Why?"},
    ]

    async def ask(**settings: Any) -> str:
        async with client(monkeypatch, handle := Handle(codec), **settings) as http:
            reply = await http.post("/v1/chat/completions", json={"model": "atlas", "messages": said, "stream": True})
            assert reply.status_code == 200 and "Paris" in reply.text
        return handle.asked[-1].question

    assert asyncio.run(ask()) == "Earlier:\nUser: Who?\nAssistant: Paris\n\nWhy?"
    assert asyncio.run(ask(history_chars=0)) == "Why?"
