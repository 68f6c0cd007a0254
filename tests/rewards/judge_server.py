"""A small faithful chat service on 127.0.0.1: an OpenAI-compatible judge that knows synonyms, and can be slow, rude or confused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tests.chat_server import ChatServer, completion, failed

_EXPECTED = re.compile(r"^Expected answer: (.*)$(?:\nAlso accepted: (.*)$)?", re.MULTILINE)
_ANSWER = re.compile(r"\[answer (\w+) begins\]\n(.*)\n\[answer \1 ends\]", re.DOTALL)
SYNONYMS = {"the french capital": "paris", "nyc": "new york city"}


class JudgeServer(ChatServer):
    """Answers as the service does: 400 for a malformed request, usage with every answer.

    `say(text, n)` may put other words in its mouth; `status(n)` may fail a request. n counts requests from 1.
    """

    key = "judge+key/with=odd&chars"
    model = "judge"

    def __init__(self) -> None:
        super().__init__()
        self.say: Callable[[str, int], str] = lambda verdict, n: f"<judge>{verdict}</judge><reason>It is.</reason>"
        self.status: Callable[[int], int] = lambda n: 200

    def answered(self, asked: dict[str, Any], n: int) -> web.Response:
        if self.status(n) != 200:
            return failed(self.status(n), "overloaded")
        roles = [message["role"] for message in asked["messages"]]
        if roles != ["system", "user"] or not asked["model"] or asked["temperature"] != 0.0:
            return failed(400, "malformed")
        said = self.say(self._verdict(_text(asked["messages"][1]["content"])), n)
        return completion(said, {"prompt_tokens": 700, "completion_tokens": 20})

    @staticmethod
    def _verdict(prompt: str) -> str:
        expected, answer = _EXPECTED.search(prompt), _ANSWER.search(prompt)
        assert expected and answer, prompt
        golds = [expected[1], *(expected[2] or "").split("; ")]
        said = answer[2].strip().lower()
        return "Yes" if SYNONYMS.get(said, said) in [gold.lower() for gold in golds] else "No"


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")
