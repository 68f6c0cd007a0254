"""The OpenAPI document of the service, served at /openapi.json. Pure.

Promise: it names every public route, every status that the route answers with and the shape of what comes; tests hold it against
the routes and fuzz the running service with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmsr_ray
from mmsr_ray.agent.workflows import WORKFLOWS
from mmsr_ray.config import DataConfig
from mmsr_ray.serving.errors import ERRORS
from mmsr_ray.serving.requests import model_names

Schema = dict[str, Any]
_PICTURE: Schema = {
    "type": "string",
    "format": "uri",
    "description": "A data URL (PNG, JPEG, WebP, GIF) or a public http(s) URL of a picture",
}
_EVENTS: Schema = {  # of a stream, each
    "type": "object",
    "properties": {"data": {"type": "string", "description": "JSON"}},
    "required": ["data"],
}
_REFUSALS_OF_QUESTIONS = (400, 401, 404, 413, 429, 500, 503, 504)


def document(models: Sequence[str], limits: DataConfig) -> Schema:
    return {
        "openapi": "3.1.0",
        "info": {"title": "mmsr-ray", "version": mmsr_ray.__version__, "description": "A model that searches before it answers."},
        "paths": _paths(models, limits),
        "components": {
            "schemas": {"Error": _error()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "Needed where the service has API keys"}},
        },
        "security": [{}, {"key": []}],
    }


def _paths(models: Sequence[str], limits: DataConfig) -> Schema:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/v1/chat/completions": {
            "post": _operation(
                "An answer, OpenAI's chat completion",
                {
                    "application/json": {"schema": _completion()},
                    "text/event-stream": {"schema": _EVENTS},
                },
                _REFUSALS_OF_QUESTIONS,
                _chat(models, limits),
            )
        },
        "/v1/agent": {
            "post": _operation(
                "An answer, with what leads to it as it happens",
                {"text/event-stream": {"schema": _EVENTS}},
                _REFUSALS_OF_QUESTIONS,
                _agent(models, limits),
            )
        },
        "/v1/models": {"get": _operation("The models", {"application/json": {"schema": _models()}}, (401,))},
        "/healthz": {"get": _operation("Alive", text)},
        "/readyz": {"get": _operation("Ready for questions", text, (503,))},
        "/openapi.json": {"get": _operation("This document", {"application/json": {"schema": {"type": "object"}}})},
        "/admin/weights": {
            "get": _operation("Weights that are served", {"application/json": {"schema": _state()}}, (401, 403, 404, 503))
            | {"parameters": [{"name": "model", "in": "query", "schema": {"enum": list(models)}}]},
            "post": _operation(
                "Serve the weights of another model folder of the same shape",
                {"application/json": {"schema": _object({"weight_version": {"type": "integer"}})}},
                (400, 401, 403, 404, 409, 413, 503, 504),
                _object(
                    {"path": {"type": "string", "minLength": 1, "description": "A folder on the service's nodes"}},
                    {"model": {"enum": list(models), "default": models[0]}},
                ),
            ),
        },
    }


def _operation(summary: str, content: Schema, refusals: tuple[int, ...] = (), body: Schema | None = None) -> Schema:
    responses: Schema = {"200": {"description": "As asked", "content": content}}
    for status in refusals:
        codes = ", ".join(code for code, (number, _) in ERRORS.items() if number == status)
        responses[str(status)] = {
            "description": f"error.code is one of: {codes}",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        if status in (429, 503):
            responses[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds, where it helps"}}
    operation: Schema = {"summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _object(properties: Schema, optional: Schema | None = None) -> Schema:
    return {"type": "object", "properties": properties | (optional or {}), "required": list(properties)}


def _error() -> Schema:
    inner = _object({"message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": "null"}, "code": {"type": "string"}})
    return _object({"error": inner})


def _agent(models: Sequence[str], limits: DataConfig) -> Schema:
    named = {"enum": list(models), "default": models[0]}
    question = {"type": "string", "minLength": 1, "maxLength": limits.max_question_chars}
    return _object(
        {"question": question, "image": _PICTURE}, {"workflow": {"enum": list(WORKFLOWS), "default": "on_demand"}, "model": named}
    )


def _chat(models: Sequence[str], limits: DataConfig) -> Schema:
    text = _object({"type": {"const": "text"}, "text": {"type": "string", "maxLength": limits.max_question_chars}})
    picture = _object({"type": {"const": "image_url"}, "image_url": _object({"url": _PICTURE})})
    content = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": [text, picture]}}]}
    message = _object({"role": {"enum": ["system", "developer", "user", "assistant", "tool"]}, "content": content})
    optional = {
        "stream": {"type": "boolean", "default": False},
        "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}}},
        "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2, "default": 0},
        "max_tokens": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1, "description": "Of each turn of the model"},
        "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1},
        "seed": {"type": ["integer", "null"], "minimum": 0, "maximum": 2**31 - 1},
        "n": {"enum": [1, None]},
    }
    return _object({"model": {"enum": model_names(models)}, "messages": {"type": "array", "items": message, "minItems": 1}}, optional)


def _completion() -> Schema:
    texts = {name: {"type": "string"} for name in ("role", "content", "reasoning_content")}
    message = _object(texts | {"refusal": {"type": ["string", "null"]}})
    choice = _object({"index": {"type": "integer"}, "message": message, "finish_reason": {"enum": ["stop", "length"]}})
    usage = _object({name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")})
    return _object(
        {
            "id": {"type": "string"},
            "object": {"const": "chat.completion"},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": choice},
            "usage": usage,
        }
    )


def _models() -> Schema:
    model = _object(
        {"id": {"type": "string"}, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": {"type": "string"}}
    )
    return _object({"object": {"const": "list"}, "data": {"type": "array", "items": model}})


def _state() -> Schema:
    return _object({"proven": {"type": "integer"}, "target": {"type": "integer"}, "served": {"type": "object"}})
