"""A small faithful chat service on 127.0.0.1: an OpenAI-compatible judge that knows synonyms, and can be slow, rude or confused."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

from aiohttp import web

KEY = "judge+key/with=odd&chars"
_EXPECTED = re.compile(r"^Expected answer: (.*)$(?:\nAlso accepted: (.*)$)?", re.MULTILINE)
_ANSWER = re.compile(r"\[answer (\w+) begins\]\n(.*)\n\[answer \1 ends\]", re.DOTALL)
SYNONYMS = {"the french capital": "paris", "nyc": "new york city"}


class JudgeServer:
    """Answers as the service does: 401 without the key, 400 for a malformed request, usage with every answer.

    `say(text, n)` may put other words in its mouth; `status(n)` may fail a request. n counts requests from 1.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.say: Callable[[str, int], str] = lambda verdict, n: f"<judge>{verdict}</judge><reason>It is.</reason>"
        self.status: Callable[[int], int] = lambda n: 200
        self.delay = 0.0
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 24)
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

    async def _models(self, request: web.Request) -> web.Response:
        return self._refused(request) or web.json_response({"object": "list", "data": [{"id": "judge"}]})

    def _refused(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") == f"Bearer {KEY}":
            return None
        return web.json_response({"error": {"message": "Incorrect API key provided"}}, status=401)

    async def _complete(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        self.requests.append(body)
        n = len(self.requests)
        await asyncio.sleep(self.delay)
        if self.status(n) != 200:
            return web.json_response({"error": {"message": "overloaded"}}, status=self.status(n))
        roles = [message["role"] for message in body["messages"]]
        if roles != ["system", "user"] or not body["model"] or body["temperature"] != 0.0:
            return web.json_response({"error": {"message": "malformed"}}, status=400)
        said = self.say(self._verdict(_text(body["messages"][1]["content"])), n)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 700, "completion_tokens": 20}})

    @staticmethod
    def _verdict(prompt: str) -> str:
        expected, answer = _EXPECTED.search(prompt), _ANSWER.search(prompt)
        assert expected and answer, prompt
        golds = [expected[1], *(expected[2] or "").split("; ")]
        said = answer[2].strip().lower()
        return "Yes" if SYNONYMS.get(said, said) in [gold.lower() for gold in golds] else "No"


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")
