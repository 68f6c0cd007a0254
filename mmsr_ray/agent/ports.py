"""What an episode needs from outside: a generator of turns (of tokens, or of a chat service) and two tools.

Promise: these protocols are all that the agent knows of engines and the web, so that it runs anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mmsr_ray.types import Generation, Picture, Sampling, ToolResult


class EngineError(RuntimeError):
    """An engine that cannot generate: dead, stuck or asked for the impossible. Infrastructure, never the policy's doing."""


class TooLong(RuntimeError):
    """A conversation that the model's context cannot hold: the policy's affair, as any other answer that it does not give."""


class Generate(Protocol):
    """One model turn. Cancelling the call cancels the generation."""

    async def __call__(self, prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        """`prompt_ids` is compact: one pad per picture. The end token belongs to the returned tokens. Raises EngineError."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """One model turn as text. `tokens` are those sampled; `stopped` is False when it hit its token limit."""

    text: str
    tokens: int
    stopped: bool
    seconds: float = 0.0
    prompt_tokens: int = 0  # as a chat service counted what it was asked; 0: not told


class Complete(Protocol):
    """One model turn of a chat service."""

    async def __call__(self, messages: Sequence[dict[str, Any]], sampling: Sampling) -> Reply:
        """`messages` in OpenAI's shape, the user's last. A refusal is a reply without text. Raises EngineError, TooLong."""
        ...


class Tools(Protocol):
    """The two searches. They never raise: what goes wrong is a typed failure in the result."""

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult: ...

    async def text_search(self, query: str, question: str) -> ToolResult: ...
