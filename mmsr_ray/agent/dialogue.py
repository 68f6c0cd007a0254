"""What a conversation needs of whoever keeps its messages and asks the model, and the engine's side of it: tokens.

Promise: a message is measured before it is added, and nothing that was added changes. The side of closed models, messages
instead of tokens, is `agent.chat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mmsr_ray.agent.pieces import Piece, SizedPicture
from mmsr_ray.agent.ports import Generate, Reply
from mmsr_ray.agent.tokens import Codec, Delta, Transcript
from mmsr_ray.types import Sampling, SealedTokens


class Message(Protocol):
    """A user message that can be added."""

    @property
    def expanded(self) -> int:
        """Tokens that it adds to the length, those of its pictures included."""
        ...


class Dialogue(Protocol):
    """User messages and model turns alternate, a user message first."""

    def user_picture(self, data: bytes) -> SizedPicture:
        """The user's picture as the model will see it. Raises PictureError."""
        ...

    def thumbnail(self, data: bytes) -> SizedPicture:
        """A search result's picture as the model will see it. Raises PictureError."""
        ...

    def encode_user(self, pieces: Sequence[Piece]) -> Message:
        """The next user message, not added yet."""
        ...

    def add_user(self, message: Any) -> None:
        """Add what `encode_user` gave."""
        ...

    @property
    def length(self) -> int:
        """Tokens so far."""
        ...

    async def reply(self, sampling: Sampling) -> Reply:
        """The model's next turn, added when it came. Raises EngineError, TooLong."""
        ...

    def seal(self) -> SealedTokens:
        """What the learner takes; empty where nothing can be learned from it."""
        ...


class TokenDialogue:
    """With an engine: every token is kept as it was sampled."""

    def __init__(self, codec: Codec, generate: Generate) -> None:
        self._codec, self._generate = codec, generate
        self._transcript = Transcript(codec)

    def user_picture(self, data: bytes) -> SizedPicture:
        return self._codec.user_picture(data)

    def thumbnail(self, data: bytes) -> SizedPicture:
        return self._codec.thumbnail(data)

    def encode_user(self, pieces: Sequence[Piece]) -> Delta:
        return self._transcript.encode_user(pieces)

    def add_user(self, message: Delta) -> None:
        self._transcript.add_user(message)

    @property
    def length(self) -> int:
        return self._transcript.length

    async def reply(self, sampling: Sampling) -> Reply:
        generation = await self._generate(self._transcript.compact_ids(), self._transcript.pictures, sampling)
        self._transcript.add_generation(generation)
        text = self._codec.decode_turn(generation.token_ids)
        return Reply(text, len(generation.token_ids), generation.stopped, generation.seconds)

    def seal(self) -> SealedTokens:
        return self._transcript.seal()
