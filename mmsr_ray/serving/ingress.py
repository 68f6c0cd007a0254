"""The deployment that speaks HTTP: who asks, what, within which limits; then the agent answers.

Promise: every answer that is no answer is a typed error in OpenAI's shape, without a stack trace; nothing waits longer than
serving.request_seconds; a client that goes away takes its episode with it. No cross-origin requests: a POST must be JSON by
its content type, for which browsers ask first and are not let in.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mmsr_ray.config import from_dict
from mmsr_ray.serving.completions import DONE, Frame, chunk, completion, delta, finish_reason, sse, usage_chunk
from mmsr_ray.serving.errors import Refused
from mmsr_ray.serving.events import Event, Failed, Finished, Started
from mmsr_ray.serving.keys import Caller, Keys
from mmsr_ray.serving.limits import STOPPING, Quotas, Room
from mmsr_ray.serving.logs import log_beside_serve
from mmsr_ray.serving.measures import Exported
from mmsr_ray.serving.observers import Observers, observed
from mmsr_ray.serving.openapi import document
from mmsr_ray.serving.page import HEADERS, PATHS, page_file
from mmsr_ray.serving.ports import Question, called
from mmsr_ray.serving.quotas import KeysQuotas, OwnQuotas, SharedQuotas
from mmsr_ray.serving.requests import Asked, model_names, no_such_model, read_agent, read_chat, read_json
from mmsr_ray.serving.tracing import open_tracer
from mmsr_ray.tools.errors import ProviderError, Redactor
from mmsr_ray.tools.http import open_http
from mmsr_ray.types import Sample, Sampling

logger = logging.getLogger(__name__)
READY_SECONDS = 5.0
ADMIN_SECONDS = 300.0
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
Events = AsyncGenerator[Event, None]

api = FastAPI(title="mmsr-ray", docs_url=None, redoc_url=None, openapi_url=None)


@api.exception_handler(Refused)
async def refused(_: Request, error: Refused) -> JSONResponse:
    return JSONResponse(error.as_json(), error.status, headers=error.headers)


@api.exception_handler(HTTPException)
@api.exception_handler(404)
@api.exception_handler(405)
async def no_such_page(_: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse(Refused("bad_request", str(error.detail)).as_json(), error.status_code)


@api.exception_handler(Exception)
async def broke(_: Request, error: Exception) -> JSONResponse:
    logger.error("a request broke", exc_info=error)
    return JSONResponse(Refused("internal", "this request met an error of the service").as_json(), 500)


@api.get("/")
@api.get("/page/{name}")
async def page(request: Request) -> Response:
    """The page on which people watch the agent think, and its files."""
    if request.url.path not in PATHS:
        raise HTTPException(404)
    file = page_file(request.url.path)
    return Response(file.body, media_type=file.media_type, headers=HEADERS)


def _stream(lines: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(lines, media_type="text/event-stream", headers=_STREAM_HEADERS)


async def _as_sent(first: Event, events: Events) -> AsyncIterator[str]:
    """Events of /v1/agent."""
    try:
        yield sse(first.as_json())
        async for event in events:
            yield sse(event.as_json())
    finally:
        await events.aclose()


async def _chunks(frame: Frame, asked: Asked, first: Event, events: Events) -> AsyncIterator[str]:
    """Of a streamed completion. The service's failure is an error message in place of the rest."""
    seen = [first]
    try:
        yield chunk(frame, {"role": "assistant", "content": ""})
        async for event in events:
            seen.append(event)
            if added := delta(event):
                yield chunk(frame, added)
        yield chunk(frame, {}, finish_reason(seen))
        if asked.include_usage:
            for event in seen:
                if isinstance(event, Finished):
                    yield usage_chunk(frame, event)
        yield DONE
    except Refused as error:
        yield sse(error.as_json())
    finally:
        await events.aclose()


# Serve copies the routes and what they refer to right here: nothing that they call may be defined below.
@serve.ingress(api)
class Ingress:
    def __init__(
        self,
        settings: dict[str, Any],
        agent: DeploymentHandle,
        weights: dict[str, DeploymentHandle],
        keys: list[str],
        book_keeper: DeploymentHandle | None = None,
    ) -> None:
        """`weights`: by model, the first is meant where none is named. `keys`: entries of `Keys`, hashes alone. `book_keeper`: where quotas.py needs one."""
        log_beside_serve()
        self._config = from_dict(settings)
        self._c = self._config.serving
        self._agent, self._weights, self._models = agent, weights, list(weights)
        exported = Exported(self._c.max_requests // self._c.ingress_replicas)
        self._keys, self._room = Keys(keys), Room(self._c)
        self._quotas: KeysQuotas = SharedQuotas(book_keeper) if book_keeper else OwnQuotas(Quotas(self._c))
        self._http = open_http(replace(self._config.tools, private_hosts=[]), Redactor())  # what tools may reach, clients may not
        self._observers = Observers(exported, open_tracer(os.environ), exported.inside)

    # ------------------------------------------------------------------------------------------------ questions

    @api.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        with self._observers.understanding(request.headers):
            caller = self._caller(request)
            asked = read_chat(await self._json(request), self._models, self._config.data, self._c.history_chars)
        frame = Frame(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), asked.called)
        first, events = await self._begun(asked, caller, frame.id, request)
        if asked.stream:
            return _stream(_chunks(frame, asked, first, events))
        return JSONResponse(completion(frame, [first, *[event async for event in events]]))

    @api.post("/v1/agent")
    async def agent(self, request: Request) -> Response:
        with self._observers.understanding(request.headers):
            caller = self._caller(request)
            asked = read_agent(await self._json(request), self._models, self._config.data)
        first, events = await self._begun(asked, caller, f"ask-{uuid.uuid4().hex}", request)
        return _stream(_as_sent(first, events))

    async def _begun(self, asked: Asked, caller: Caller, uid: str, request: Request) -> tuple[Event, Events]:
        """The first event and the rest, once the question is accepted. Raises Refused."""
        observer = self._observers.request(asked.model, asked.workflow, request.headers)
        events = observed(self._events(asked, caller, uid), observer)
        first = await anext(events)
        if isinstance(first, Failed):
            await events.aclose()
            raise Refused(first.code, first.message)
        return first, events

    async def _events(self, asked: Asked, caller: Caller, uid: str) -> Events:
        """Of one request, within its deadline; what breaks becomes Failed. Raises Refused before the first event alone."""
        await self._quotas.take(caller.name)
        deadline = time.monotonic() + self._c.request_seconds
        with self._room.inside():
            sample = Sample(uid, asked.question, asked.image or await self._fetched(asked.image_url or ""), (), image_url=asked.image_url)
            sampling = Sampling(asked.temperature, asked.max_tokens or self._config.agent.max_turn_tokens, asked.seed)
            told = self._as_it_happens if asked.stream else self._when_it_is_over
            try:
                async with aclosing(told(Question(sample, asked.model, asked.workflow, sampling, caller.name), deadline)) as events:
                    async for event in events:
                        yield event
            except TimeoutError:
                yield Failed("timeout", f"no answer within {self._c.request_seconds:g} s")
            except (RayError, RayServeException) as error:
                logger.warning("request %s lost its agent: %s", uid, type(error).__name__)
                yield Failed("unavailable", "the service lost this request: try again")

    async def _as_it_happens(self, question: Question, deadline: float) -> Events:
        """An agent whose replica dies is replaced by another as long as nothing but Started was said. Raises RayError, TimeoutError."""
        said = 0
        for attempt in range(1, self._c.turn_attempts + 1):
            stream: Any = self._agent.options(stream=True).run.remote(question)
            try:
                while True:
                    for event in await asyncio.wait_for(anext(stream), deadline - time.monotonic()):
                        if not (said and isinstance(event, Started)):
                            said += 1
                            yield event
            except StopAsyncIteration:
                return
            except RayActorError:
                if said > 1 or attempt == self._c.turn_attempts:
                    raise
                logger.warning("an episode lost its agent before it said anything: attempt %d", attempt)
            finally:
                stream.cancel()

    async def _when_it_is_over(self, question: Question, deadline: float) -> Events:
        """All at once; an agent whose replica dies is replaced by another. Raises RayError, TimeoutError."""
        for attempt in range(1, self._c.turn_attempts + 1):
            try:
                events = await asyncio.wait_for(called(self._agent.ask.remote(question)), deadline - time.monotonic())
            except RayActorError:
                if attempt == self._c.turn_attempts:
                    raise
                logger.warning("an episode lost its agent: attempt %d", attempt)
            else:
                for event in events:
                    yield event
                return

    async def _fetched(self, url: str) -> bytes:
        """A picture that the client names, from the open web alone (tools/http.py). Raises Refused."""
        try:
            found = await self._http.fetch(
                url, timeout=self._c.image_url_seconds, limit=self._config.data.max_image_bytes, types=("image/",)
            )
        except ProviderError as error:
            logger.info("a client's picture: %s", error)
            raise Refused("bad_input", "the picture's URL gives no picture: it must be public, and of a type image/*") from None
        return found.body

    # ------------------------------------------------------------------------------------------------ the rest

    async def close(self) -> None:
        """From now on nobody is let in; who is inside is answered (app.stop)."""
        self._room.closed = True

    async def inside(self) -> int:
        """Requests that run or wait."""
        return self._room.open

    @api.get("/v1/models")
    async def models(self, request: Request) -> dict[str, Any]:
        self._caller(request)
        names = model_names(self._models)
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "mmsr-ray"} for name in names]}

    @api.get("/openapi.json")
    async def openapi(self) -> dict[str, Any]:
        return document(self._models, self._config.data)

    @api.get("/healthz")
    async def healthz(self) -> Response:
        return PlainTextResponse("ok")

    @api.get("/readyz")
    async def readyz(self) -> Response:
        """200 when a question would be answered."""
        if self._room.closed:
            raise Refused("unavailable", STOPPING, retry_after=self._c.retry_after_seconds)
        try:
            await asyncio.wait_for(called(self._agent.ready.remote()), READY_SECONDS)
        except (TimeoutError, RayError, RayServeException):
            raise Refused("unavailable", "the engines or the searches do not answer", retry_after=self._c.retry_after_seconds) from None
        return PlainTextResponse("ok")

    @api.post("/admin/weights")
    async def bring_in(self, request: Request) -> dict[str, Any]:
        """{"path": a model folder on the service's nodes, "model": whose weights}: they are served, one engine first, then by all."""
        self._admin(request)
        body = await self._json(request)
        weights, path = self._weights_of(body.get("model", self._models[0])), body.get("path")
        if not isinstance(path, str) or not path:
            raise Refused("bad_request", "path must be a folder")
        try:
            version = await asyncio.wait_for(called(weights.bring_in.remote(path)), ADMIN_SECONDS)
        except RayTaskError as error:
            if isinstance(error.cause, Refused):
                raise error.cause from None
            raise
        except TimeoutError:
            raise Refused("timeout", f"the weights were not published within {ADMIN_SECONDS:g} s") from None
        return {"weight_version": version}

    @api.get("/admin/weights")
    async def weights(self, request: Request) -> dict[str, Any]:
        self._admin(request)
        return await called(self._weights_of(request.query_params.get("model", self._models[0])).state.remote())

    def _weights_of(self, model: Any) -> DeploymentHandle:
        if model not in self._models:
            raise no_such_model(self._models)
        return self._weights[model]

    def _admin(self, request: Request) -> None:
        if not self._caller(request).admin:
            raise Refused("forbidden", "this API key may not change the weights")

    def _caller(self, request: Request) -> Caller:
        return self._keys.caller(request.headers.get("authorization", ""))

    async def _json(self, request: Request) -> dict[str, Any]:
        """The body, of at most serving.body_bytes. Raises Refused."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused("bad_request", "the content type must be application/json")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._c.body_bytes:
                raise Refused("request_too_large", f"at most {self._c.body_bytes} bytes are accepted")
        return read_json(bytes(body))
