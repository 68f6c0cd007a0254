"""What a model replied, as JSON of a known shape. Pure.

Structured output is asked for by a JSON schema. Services that ignore it wrap the object in a code fence or in prose, so one object
is looked for in there; anything else is a complaint, never a guess.
"""

from __future__ import annotations

import json
import re
from typing import Any

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


class BadReply(ValueError):
    """A reply that is not of the shape asked for; the message tells the model."""


def schema(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    """An OpenAI `response_format` for an object with exactly these properties."""
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": closed(properties)}}


def closed(properties: dict[str, Any]) -> dict[str, Any]:
    """Strict services want every property required and none beside them."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def read_object(text: str) -> dict[str, Any]:
    """The one JSON object of a reply. Raises BadReply."""
    fenced = _FENCE.findall(text)
    for part in (text, *(fenced if len(fenced) == 1 else ()), text[text.find("{") : text.rfind("}") + 1]):
        try:
            found = json.loads(part)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    raise BadReply("Reply with the JSON object alone.")


def text_in(found: dict[str, Any], name: str) -> str:
    """A string property, on one line. Raises BadReply."""
    value = found.get(name)
    if not isinstance(value, str):
        raise BadReply(f"The property {name!r} is missing or is no text.")
    return " ".join(value.split())
