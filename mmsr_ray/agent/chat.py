"""A conversation with a chat service: the same messages as an engine's, in OpenAI's shape instead of tokens.

Promise: the service is shown what the model would be shown: the same texts, foreign ones neutralised, and the same pictures
at the same size, as data URLs. Lengths are those that the service counts; what it has not counted yet is estimated. Nothing
can be learned from such an episode: its tokens are sealed empty.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmsr_ray.agent.grammar import neutralise
from mmsr_ray.agent.pictures import Pictures
from mmsr_ray.agent.pieces import Own, Piece, SizedPicture
from mmsr_ray.agent.ports import Complete, Reply
from mmsr_ray.types import Sampling, SealedTokens

BYTES_PER_TOKEN = 4  # of text, about, until the service has counted


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A user message in OpenAI's shape; `expanded` is an estimate of its tokens."""

    message: dict[str, Any]
    expanded: int


class ChatDialogue:
    """Of one episode (`dialogue.Dialogue`)."""

    def __init__(self, pictures: Pictures, complete: Complete) -> None:
        self._pictures, self._complete = pictures, complete
        self._messages: list[dict[str, Any]] = []
        self._length = 0

    def user_picture(self, data: bytes) -> SizedPicture:
        return self._pictures.user_picture(data)

    def thumbnail(self, data: bytes) -> SizedPicture:
        return self._pictures.thumbnail(data)

    def encode_user(self, pieces: Sequence[Piece]) -> ChatMessage:
        content: list[dict[str, Any]] = []
        expanded = 0
        for piece in pieces:
            if isinstance(piece, SizedPicture):
                content.append({"type": "image_url", "image_url": {"url": data_url(piece)}})
                expanded += self._pictures.geometry.tokens(piece.grid)
                continue
            text = piece.text if isinstance(piece, Own) else neutralise(piece.text)
            expanded += _estimate(text)
            if content and content[-1]["type"] == "text":
                content[-1]["text"] += text
            else:
                content.append({"type": "text", "text": text})
        return ChatMessage({"role": "user", "content": content}, expanded)

    def add_user(self, message: ChatMessage) -> None:
        self._messages.append(message.message)
        self._length += message.expanded

    @property
    def length(self) -> int:
        return self._length

    async def reply(self, sampling: Sampling) -> Reply:
        reply = await self._complete(list(self._messages), sampling)
        self._messages.append({"role": "assistant", "content": reply.text})
        said = reply.tokens or _estimate(reply.text)
        self._length = reply.prompt_tokens + said if reply.prompt_tokens else self._length + said
        return reply

    def seal(self) -> SealedTokens:
        return SealedTokens(
            ids=np.zeros(0, np.int32),
            loss_mask=np.zeros(0, np.bool_),
            logprobs=np.zeros(0, np.float32),
            versions=np.zeros(0, np.int32),
            grids=np.zeros((0, 3), np.int32),
            pictures=(),
        )


def data_url(sized: SizedPicture) -> str:
    return f"data:image/png;base64,{base64.b64encode(sized.picture.data).decode()}"


def _estimate(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
