"""Events of an episode as OpenAI's chat completions. Pure.

Promise: the answer is `content`; reasoning and searches are `reasoning_content`; a model that gave no answer says why in
`refusal`, with finish_reason "length" where it ran out of room. `usage` counts tokens as events.Finished does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmsr_ray.agent.grammar import TRUNCATED
from mmsr_ray.serving.errors import Refused
from mmsr_ray.serving.events import Answer, Event, Failed, Finished, Reason, Results, Search
from mmsr_ray.types import ToolKind

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Frame:
    """What all messages of one completion share. `created` in seconds since 1970."""

    id: str
    created: int
    model: str

    def of(self, kind: str, **rest: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, **rest}


def sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def reasoning(event: Event) -> str:
    """What an event adds to `reasoning_content`."""
    match event:
        case Reason(text):
            return f"{text}\n"
        case Search(ToolKind.IMAGE):
            return "[image search]\n"
        case Search(_, query):
            return f"[text search: {query}]\n"
        case Results(_, hits, failure):
            found = [f"- {hit.title or hit.url}\n" for hit in hits]
            return "".join(found) or f"- nothing found{f' ({failure})' if failure else ''}\n"
        case _:
            return ""


def delta(event: Event) -> dict[str, str]:
    """What an event adds to the message; {} for one that adds nothing. Raises Refused where the service failed."""
    match event:
        case Answer(text):
            return {"content": text}
        case Failed("policy_error", message):
            return {"refusal": message}
        case Failed(code, message):
            raise Refused(code, message)
        case _:
            added = reasoning(event)
            return {"reasoning_content": added} if added else {}


def finish_reason(events: Iterable[Event]) -> str:
    """OpenAI's word for how it ended."""
    failed = [event.message for event in events if isinstance(event, Failed)]
    return "length" if any(TRUNCATED in message or "too long" in message for message in failed) else "stop"


def usage(finished: Finished) -> dict[str, int]:
    prompt, completion = finished.prompt_tokens, finished.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def completion(frame: Frame, events: list[Event]) -> dict[str, Any]:
    """The whole, not streamed. Raises Refused where the service failed."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None, "reasoning_content": ""}
    for event in events:
        for name, text in delta(event).items():
            message[name] = (message[name] or "") + text
    (finished,) = (event for event in events if isinstance(event, Finished))
    choice = {"index": 0, "message": message, "finish_reason": finish_reason(events), "logprobs": None}
    return frame.of("chat.completion", choices=[choice], usage=usage(finished))


def chunk(frame: Frame, added: dict[str, Any], reason: str | None = None) -> str:
    """One server-sent event of a streamed completion."""
    return sse(frame.of("chat.completion.chunk", choices=[{"index": 0, "delta": added, "finish_reason": reason}]))


def usage_chunk(frame: Frame, finished: Finished) -> str:
    return sse(frame.of("chat.completion.chunk", choices=[], usage=usage(finished)))
