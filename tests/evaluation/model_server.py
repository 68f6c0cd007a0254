"""A chat service on 127.0.0.1 that plays a policy: real HTTP, a key, usage; it can limit, refuse, cut short or fall silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

KEY = "model+key/with=odd&chars"
Say = Callable[[Sequence[dict[str, Any]], int], str | dict[str, Any] | web.Response]


class ModelServer:
    """`say(messages, n)` gives the text, a whole choice, or a response of its own; n counts the requests from 1."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.requests: list[dict[str, Any]] = []
        self.delay = 0.0
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _refused(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") == f"Bearer {KEY}":
            return None
        return web.json_response({"error": {"message": "Incorrect API key provided"}}, status=401)

    async def _models(self, request: web.Request) -> web.Response:
        return self._refused(request) or web.json_response({"object": "list", "data": [{"id": "closed"}]})

    async def _complete(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        asked = await request.json()
        self.requests.append(asked)
        await asyncio.sleep(self.delay)
        said = self.say(asked["messages"], len(self.requests))
        if isinstance(said, web.Response):
            return said
        choice = said if isinstance(said, dict) else {"finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        usage = {"prompt_tokens": 100 * len(asked["messages"]), "completion_tokens": 7}
        return web.json_response({"choices": [{"index": 0, **choice}], "usage": usage})


def limited(after: str) -> web.Response:
    return web.json_response({"error": {"message": "Rate limit reached"}}, status=429, headers={"Retry-After": after})


def filtered() -> web.Response:
    error = {"message": "The prompt was filtered", "code": "content_filter"}
    return web.json_response({"error": error}, status=400)
