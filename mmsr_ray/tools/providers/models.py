"""Chat services that play the policy, and that write for the building of data sets: a conversation in, the next turn out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from mmsr_ray.tools.cache import key_of
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.providers.base import Provider, Summary, Usage
from mmsr_ray.tools.providers.chat import ChatService, Message, without_thoughts
from mmsr_ray.types import ToolFailure


@dataclass(frozen=True, slots=True)
class Request:
    """A conversation in OpenAI's shape, the user's message last. `seed` tells equal requests apart that may be answered otherwise."""

    messages: Sequence[dict[str, Any]]
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    response_format: Mapping[str, Any] | None = None  # OpenAI's, where the reply has to have a form

    @property
    def key(self) -> str:
        asked = json.dumps([list(self.messages), self.response_format], sort_keys=True)
        return key_of(asked, str(self.max_tokens), str(self.temperature), str(self.seed))


@dataclass(frozen=True, slots=True)
class Said:
    """A turn of the service. `cut`: it hit the limit of tokens; `refused`: the service would not, and `text` is what it said to that;
    `too_long`: it would not because the conversation does not fit into its context.
    """

    text: str
    cut: bool
    refused: bool
    input_tokens: int
    output_tokens: int
    too_long: bool = False

    def packed(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def unpacked(cls, text: str) -> Self:
        return cls(**json.loads(text))


class ChatModel(ChatService):
    """Any OpenAI-compatible service: GPT-4o, Gemini, a server of one's own."""

    role = "model"
    about = "conversation"

    async def turn(self, request: Request) -> Summary:
        """A packed `Said`. What the service's filter stops before the model sees it is refused too, as is what its context cannot hold."""
        form = {} if request.response_format is None else {"response_format": dict(request.response_format)}
        too_long = False
        try:
            answer = await self.ask(request.messages, max_tokens=request.max_tokens, temperature=request.temperature, **form)
        except ProviderError as error:
            too_long = error.status in (400, 413) and bool(_TOO_LONG.search(error.detail))
            if not too_long and (error.status != 400 or not _FILTERED.search(error.detail)):
                raise
            answer = Message("", cut=False, usage=Usage(), refused=True)
        usage = answer.usage
        said = Said(without_thoughts(answer.text), answer.cut, answer.refused, usage.input_tokens, usage.output_tokens, too_long)
        return Summary(said.packed(), usage)


class NoModel(Provider):
    """The policy is an engine."""

    needs_url = False
    remote = False
    key_required = False

    async def turn(self, request: Request) -> Summary:
        raise ProviderError(ToolFailure.REJECTED, "no service plays the policy: set tools.model.kind=chat", retry=False)


_FILTERED = re.compile(r"content[_ ](?:filter|policy)|responsible ?ai|safety", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"context[_ ](?:length|window)|(?:prompt|input|request)[a-z ]* (?:is too long|exceeds the maximum)|too many (?:input )?tokens", re.I
)
