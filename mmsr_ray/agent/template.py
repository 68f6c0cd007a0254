"""What a chat template puts around messages, derived by rendering markers and comparing.

Promise: no literal of any template stands in this package. For a conversation of user and assistant messages,
`opening + user + closing + assistant + between + user + closing …` is exactly what the template renders, the newline
after each end token included; where a template does not work like that, `CodecError` says so at start-up.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

_USER, _REPLY, _NEXT = "Quser1Q", "Qreply2Q", "Qnext3Q"


class CodecError(ValueError):
    """A model folder that cannot be talked to (no chat template, no image placeholder), or text it cannot encode."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text that is either one special token or plain."""

    text: str
    special: bool


@dataclass(frozen=True, slots=True)
class TemplateGlue:
    """The parts of a chat template around the messages (module docstring)."""

    opening: tuple[Segment, ...]  # before the first user message: system message and user header
    closing: tuple[Segment, ...]  # after a user message: its end and the assistant header
    between: tuple[Segment, ...]  # after an assistant message: its end token first, then the user header
    picture: tuple[Segment, ...]  # a picture in a user message, holding one pad

    @property
    def end(self) -> str:
        """The token that ends an assistant turn."""
        return self.between[0].text


def find_template(tokenizer: Any, model_path: str) -> str:
    """The chat template that knows pictures: the tokenizer's, else the processor's file beside it. Raises CodecError."""
    from transformers.utils.hub import cached_file  # where a template is looked for, the tokenizer has brought transformers already

    candidates = [tokenizer.chat_template] if isinstance(tokenizer.chat_template, str) else []
    for name in ("chat_template.jinja", "chat_template.json"):
        found = cached_file(model_path, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
        if found is not None:
            text = Path(found).read_text(encoding="utf-8")
            candidates.append(json.loads(text)["chat_template"] if name.endswith(".json") else text)
    if not candidates:
        raise CodecError(f"{model_path} has no chat template: copy chat_template.jinja from the model's hub page into it")
    for template in candidates:
        if "image" in template:
            return template
    raise CodecError(f"the chat template of {model_path} knows no pictures: use the one of a Qwen2.5-VL model")


def derive_glue(tokenizer: Any, template: str, pad: str) -> TemplateGlue:
    """The glue of a template whose picture placeholder holds the token `pad`. Raises CodecError."""
    specials = sorted((token.content for token in tokenizer.added_tokens_decoder.values() if token.special), key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, specials)) + ")")

    def segments(text: str) -> tuple[Segment, ...]:
        return tuple(Segment(part, special=bool(pattern.fullmatch(part))) for part in pattern.split(text) if part)

    def render(*messages: tuple[str, list[dict[str, str]]]) -> str:
        conversation = [{"role": role, "content": content} for role, content in messages]
        try:
            return tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError) as error:
            raise CodecError(f"the chat template does not take messages made of text and pictures: {error}") from error

    asked = ("user", [_text(_USER)])
    opening, closing = _split(render(asked), _USER)
    whole = render(asked, ("assistant", [_text(_REPLY)]), ("user", [_text(_NEXT)]))
    start, rest = _split(whole, _REPLY)
    between, last_closing = _split(rest, _NEXT)
    if start != opening + _USER + closing or last_closing != closing:
        raise CodecError("the chat template renders a message differently once others follow it: transcripts could not be append-only")
    picture = render(("user", [{"type": "image"}, _text(_USER)]))[len(opening) :].partition(_USER)[0]
    glue = TemplateGlue(segments(opening), segments(closing), segments(between), segments(picture))
    if not glue.between or not glue.between[0].special:
        raise CodecError("the chat template does not end an assistant turn with a special token")
    if [segment.text for segment in glue.picture].count(pad) != 1:
        raise CodecError(f"the chat template does not write one {pad} for a picture")
    return glue


def _text(marker: str) -> dict[str, str]:
    return {"type": "text", "text": marker}


def _split(rendered: str, marker: str) -> tuple[str, str]:
    before, found, after = rendered.partition(marker)
    if not found:
        raise CodecError("the chat template drops the text of a message")
    return before, after
