"""A chat service on 127.0.0.1 that plays a policy; it can limit, refuse, cut short, fall silent, and be choosy about parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from tests.chat_server import ChatServer, completion, failed

Say = Callable[[Sequence[dict[str, Any]], int], str | dict[str, Any] | web.Response]


class ModelServer(ChatServer):
    """`say(messages, n)` gives the text, a whole choice, or a response of its own; n counts the requests from 1.

    `newer`: refuses what OpenAI's reasoning models refuse, in their words.
    """

    key = "model+key/with=odd&chars"
    model = "closed"

    def __init__(self, say: Say) -> None:
        super().__init__()
        self.say = say
        self.newer = False

    def answered(self, asked: dict[str, Any], n: int) -> web.Response:
        if self.newer and (response := _choosy(asked)):
            return response
        said = self.say(asked["messages"], n)
        if isinstance(said, web.Response):
            return said
        return completion(said, {"prompt_tokens": 100 * len(asked["messages"]), "completion_tokens": 7})


def _choosy(asked: dict[str, Any]) -> web.Response | None:
    if "max_tokens" in asked:
        said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        return failed(400, said, type="invalid_request_error", param="max_tokens", code="unsupported_parameter")
    if asked.get("temperature", 1) != 1:
        said = "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported."
        return failed(400, said, type="invalid_request_error", param="temperature", code="unsupported_value")
    return None


def limited(after: str) -> web.Response:
    return failed(429, "Rate limit reached", {"Retry-After": after})


def filtered() -> web.Response:
    return failed(400, "The prompt was filtered", code="content_filter")


def too_long() -> web.Response:
    said = "This model's maximum context length is 128000 tokens. However, your messages resulted in 130105 tokens."
    return failed(400, said, type="invalid_request_error", param="messages", code="context_length_exceeded")
