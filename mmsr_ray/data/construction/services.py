"""What the stages need from outside: pictures and pages of the web, and a model that writes. `tools` is behind it.

Promise: an answer, a typed "there is none", or ServiceFailed. A service that failed says nothing about the candidate: whoever drops one
for it counts it apart, and a run in which that happens often stops (flow).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mmsr_ray.tools.providers.models import Request, Said
from mmsr_ray.types import FoundPicture, ToolFailure, ToolResult


class ServiceFailed(RuntimeError):
    """A service did not answer, in spite of all retries. `final`: no other request would fare better (money, tape)."""

    def __init__(self, result: ToolResult) -> None:
        super().__init__(f"{result.kind}: {result.failure}: {result.detail}")
        self.final = result.failure in (ToolFailure.BUDGET, ToolFailure.TAPE_MISS)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said. `cut`: it hit the limit of tokens; `refused`: it, or a filter before it, would not."""

    text: str
    cut: bool = False
    refused: bool = False


class Author(Protocol):
    async def ask(self, messages: Sequence[dict[str, Any]], max_tokens: int, response_format: dict[str, Any]) -> Reply:
        """The model's reply to a conversation in OpenAI's shape. Raises ServiceFailed."""
        ...


class Web(Protocol):
    async def pictures(self, concept: str, wanted: int) -> list[FoundPicture]:
        """The best pictures of a concept, best first; empty when there are none. Raises ServiceFailed."""
        ...

    async def page(self, url: str) -> str:
        """A page's text; "" when the page is gone, forbidden or empty. Raises ServiceFailed."""
        ...


class Calls(Protocol):
    """The tools plane: RemoteTools or LocalTools."""

    async def find_pictures(self, query: str, wanted: int) -> ToolResult: ...

    async def read_page(self, url: str) -> ToolResult: ...

    async def complete(self, request: Request) -> ToolResult: ...


class Services:
    """Author and Web by the tools plane: cached, limited, retried, paid for there."""

    def __init__(self, calls: Calls, structured: bool) -> None:
        """`structured`: the service heeds `response_format`."""
        self._calls, self._structured = calls, structured

    async def ask(self, messages: Sequence[dict[str, Any]], max_tokens: int, response_format: dict[str, Any]) -> Reply:
        result = await self._calls.complete(Request(messages, max_tokens, response_format=response_format if self._structured else None))
        hits = _hits(result)
        if not hits:
            raise ServiceFailed(result)
        said = Said.unpacked(hits[0].summary)
        return Reply(said.text, said.cut, said.refused)

    async def pictures(self, concept: str, wanted: int) -> list[FoundPicture]:
        return [hit for hit in _hits(await self._calls.find_pictures(concept, wanted)) if isinstance(hit, FoundPicture)]

    async def page(self, url: str) -> str:
        hits = _hits(await self._calls.read_page(url))
        return hits[0].summary if hits else ""


def _hits(result: ToolResult) -> Sequence[Any]:
    if result.failure is not None and result.failure.infra:
        raise ServiceFailed(result)
    return result.hits
