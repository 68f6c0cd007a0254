"""What the chat services of tests have in common: real HTTP on 127.0.0.1, OpenAI's paths, a key, usage."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web


class ChatServer:
    """Answers 401 without `key`. A service says in `answered` what becomes of a request; `requests` are those so far."""

    key: str
    model: str

    def __init__(self) -> None:
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

    def answered(self, asked: dict[str, Any], n: int) -> web.Response:
        """n counts the requests from 1."""
        raise NotImplementedError

    def _refused(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") == f"Bearer {self.key}":
            return None
        return failed(401, "Incorrect API key provided")

    async def _models(self, request: web.Request) -> web.Response:
        return self._refused(request) or web.json_response({"object": "list", "data": [{"id": self.model}]})

    async def _complete(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        asked = await request.json()
        self.requests.append(asked)
        n = len(self.requests)
        await asyncio.sleep(self.delay)
        return self.answered(asked, n)


def completion(said: str | dict[str, Any], usage: dict[str, int]) -> web.Response:
    """`said`: the text, or a whole choice."""
    choice = said if isinstance(said, dict) else {"finish_reason": "stop", "message": {"role": "assistant", "content": said}}
    return web.json_response({"choices": [{"index": 0, **choice}], "usage": usage})


def failed(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> web.Response:
    return web.json_response({"error": {"message": message, **more}}, status=status, headers=headers)
