"""What an episode needs from outside: a generator of turns and two tools.

Promise: these protocols are all that the agent knows of engines and the web, so that it runs anywhere.
"""

from __future__ import annotations

from typing import Protocol

from mmsr_ray.types import Generation, Picture, Sampling, ToolResult


class EngineError(RuntimeError):
    """An engine that cannot generate: dead, stuck or asked for the impossible. Infrastructure, never the policy's doing."""


class Generate(Protocol):
    """One model turn. Cancelling the call cancels the generation."""

    async def __call__(self, prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        """`prompt_ids` is compact: one pad per picture. The end token belongs to the returned tokens. Raises EngineError."""
        ...


class Tools(Protocol):
    """The two searches. They never raise: what goes wrong is a typed failure in the result."""

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult: ...

    async def text_search(self, query: str, question: str) -> ToolResult: ...
