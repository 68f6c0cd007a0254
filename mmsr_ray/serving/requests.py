"""Requests as they come in: JSON of a stranger in, a typed question out. Pure.

Promise: what is returned is of the right types and within the limits of size; everything else is `Refused` with a sentence
that names the field. Pictures are not decoded here (agent/pictures.py does, bounded), nor fetched.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmsr_ray.agent.workflows import WORKFLOWS
from mmsr_ray.config import DataConfig
from mmsr_ray.serving.errors import Refused

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_URL_CHARS = 2_000
# Of OpenAI's: they would change what the answer is, and nobody would notice that they did not.
_NOT_HERE = ("tools", "functions", "audio", "logprobs", "top_logprobs", "stop", "logit_bias", "prediction", "web_search_options")
_ONLY: dict[str, tuple[Any, ...]] = {  # values that change nothing
    "n": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
}
_SPEAKERS = {"user": "User", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a picture: `image` holds its bytes, or `image_url` says where they are."""

    question: str
    workflow: str
    image: bytes = b""
    image_url: str | None = None
    temperature: float = 0.0  # 0: greedy
    max_tokens: int | None = None  # of each model turn
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False
    model: str = ""  # whose answer it is
    called: str = ""  # as the client called it, workflow included


def read_json(body: bytes) -> dict[str, Any]:
    """Raises Refused."""
    try:
        found = json.loads(body)
        if b"\\u" in body:  # half of a character is valid JSON and no text
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise Refused("bad_request", "the body is not JSON, or not of whole characters") from None
    if not isinstance(found, dict):
        raise Refused("bad_request", "the body must be a JSON object")
    return found


def read_agent(body: dict[str, Any], models: Sequence[str], limits: DataConfig) -> Asked:
    """{"question", "image": data or http(s) URL, "workflow", "model"} of /v1/agent; without a model the first. Raises Refused."""
    model = body.get("model", models[0])
    if model not in models:
        raise no_such_model(models)
    workflow = body.get("workflow", "on_demand")
    if not isinstance(workflow, str) or workflow not in WORKFLOWS:
        raise Refused("bad_request", f"workflow must be one of {', '.join(WORKFLOWS)}")
    image, url = _picture(body.get("image"), "image", limits)
    return Asked(_question(body.get("question"), "question", limits), workflow, image, url, stream=True, model=model, called=model)


def read_chat(body: dict[str, Any], models: Sequence[str], limits: DataConfig, history_chars: int = 0) -> Asked:
    """OpenAI's chat completion. Raises Refused.

    The last user message is the question; its last picture goes with it, else the latest one before. Of what was said earlier the latest
    `history_chars` characters go before the question: whole turns, and none where that would make it too long. What system
    messages say is left out: the model knows one protocol, that of its training.
    """
    for name in _NOT_HERE:
        if body.get(name):
            raise Refused("bad_request", f"{name} is not supported: the model calls its own searches and answers in text")
    for name, allowed in _ONLY.items():
        if body.get(name) is not None and (isinstance(body[name], bool) or body[name] not in allowed):
            raise Refused("bad_request", f"{name} must be {' or '.join(json.dumps(value) for value in allowed)}, or left out")
    text, pictures, earlier = _last_user_message(body.get("messages"))
    if not pictures:
        raise Refused("bad_request", "messages hold no picture: add a part of type image_url to the last user message")
    text = _question(text, "the last user message", limits)
    text = _after(earlier, text, min(history_chars, limits.max_question_chars - len(text)))
    image, url = _picture(pictures[-1], "image_url", limits)
    options = body.get("stream_options") or {}
    model, workflow = model_and_workflow(body.get("model"), models)
    return Asked(
        text,
        workflow,
        image,
        url,
        temperature=_number(body, "temperature", 0.0, 2.0) or 0.0,
        max_tokens=_whole(body, "max_completion_tokens", 1) or _whole(body, "max_tokens", 1),
        seed=_whole(body, "seed", 0),
        stream=body.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        model=model,
        called=body["model"],
    )


def model_and_workflow(called: Any, models: Sequence[str]) -> tuple[str, str]:
    """NAME searches on demand, NAME:direct and NAME:rag do what they say. Raises Refused."""
    model, _, suffix = called.partition(":") if isinstance(called, str) else ("", "", "")
    workflow = suffix or "on_demand"
    if model not in models or workflow not in WORKFLOWS:
        raise no_such_model(models)
    return model, workflow


def no_such_model(models: Sequence[str]) -> Refused:
    return Refused("model_not_found", f"there is no such model: choose one of {', '.join(model_names(models))}")


def model_names(models: Sequence[str]) -> list[str]:
    """All that a request may call: each model by itself and with a workflow."""
    others = [workflow for workflow in WORKFLOWS if workflow != "on_demand"]
    return [name for model in models for name in (model, *(f"{model}:{workflow}" for workflow in others))]


def _last_user_message(messages: Any) -> tuple[str, list[Any], list[str]]:
    """Its text, the pictures of the last user message that has any, in order, and what was said before, a line each."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Refused("bad_request", "messages must be a list of objects")
    said = [
        (message["role"], *_parts(message.get("content") or "")) for message in messages if message.get("role") in tuple(_SPEAKERS)
    ]  # a tuple: a role may be anything
    while said and said[-1][0] != "user":  # what a client began to write for the assistant
        said.pop()
    if not said:
        raise Refused("bad_request", "messages hold no user message")
    pictures = [pictures for role, _, pictures in said if role == "user" and pictures]
    earlier = [f"{_SPEAKERS[role]}: {text.strip()}" for role, text, _ in said[:-1] if text.strip()]
    return said[-1][1], pictures[-1] if pictures else [], earlier


def _after(earlier: list[str], question: str, room: int) -> str:
    """The question after the latest of what was said, within `room` characters more."""
    kept: list[str] = []
    room -= len("Earlier:\n\n")
    for line in reversed(earlier):
        room -= len(line) + 1
        if room < 0:
            break
        kept.insert(0, line)
    return "\n".join(["Earlier:", *kept, "", question]) if kept else question


def _parts(content: Any) -> tuple[str, list[Any]]:
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Refused("bad_request", "content must be a string or a list of parts")
    texts: list[str] = []
    pictures: list[Any] = []
    for part in content:
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") == "image_url" and isinstance(part.get("image_url"), dict):
            pictures.append(part["image_url"].get("url"))
        else:
            raise Refused("bad_request", "a part of content must be of type text or image_url")
    return "\n".join(texts), pictures


def _question(text: Any, where: str, limits: DataConfig) -> str:
    if not isinstance(text, str) or not text.strip():
        raise Refused("bad_request", f"{where} holds no question")
    if len(text) > limits.max_question_chars:
        raise Refused("bad_request", f"{where} has {len(text)} characters: at most {limits.max_question_chars} are accepted")
    return text.strip()


def _picture(url: Any, where: str, limits: DataConfig) -> tuple[bytes, str | None]:
    """(bytes, None) of a data URL, (b"", url) of one that is to be fetched."""
    if not isinstance(url, str) or not url:
        raise Refused("bad_request", f"{where} must be a data URL or an http(s) URL of a picture")
    if url[:5].lower() == "data:":
        return _decoded(url, where, limits), None
    if not url.lower().startswith(("http://", "https://")) or len(url) > _URL_CHARS:
        raise Refused("bad_request", f"{where} must be a data URL, or an http(s) URL of at most {_URL_CHARS} characters")
    return b"", url


def _decoded(url: str, where: str, limits: DataConfig) -> bytes:
    head = _DATA_URL.match(url)
    if not head:
        raise Refused("bad_request", f"{where}: write a data URL as data:image/png;base64,...")
    if (len(url) - head.end()) * 3 // 4 > limits.max_image_bytes + 2:
        raise Refused("request_too_large", f"{where}: at most {limits.max_image_bytes} bytes are accepted")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Refused("bad_request", f"{where} is not valid base64") from None


def _number(body: dict[str, Any], name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refused("bad_request", f"{name} must be a number from {low:g} to {high:g}")
    return float(value)


def _whole(body: dict[str, Any], name: str, low: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**31:
        raise Refused("bad_request", f"{name} must be a whole number of at least {low}")
    return value
