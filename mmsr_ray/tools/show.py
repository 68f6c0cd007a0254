"""A tool's result for people (text) and for programs (JSON). Pure.

Promise: nothing that a tool returned is left out but the bytes of pictures, and those are named by their hash.
"""

from __future__ import annotations

import textwrap
from typing import Any

from mmsr_ray.types import ImageHit, TextHit, ToolFailure, ToolResult

_WIDTH = 100
_WHY = {
    ToolFailure.TIMEOUT: "a service did not answer in time",
    ToolFailure.RATE_LIMITED: "a service asks for fewer requests",
    ToolFailure.UNAVAILABLE: "a service is down",
    ToolFailure.BAD_RESPONSE: "a service answered something else than its kind does",
    ToolFailure.REJECTED: "a service refused the request: is its key right?",
    ToolFailure.NO_RESULTS: "nothing was found",
}


def as_text(result: ToolResult, saved: list[str] | None = None) -> str:
    """Title, link and summary of each hit, then one line of facts. `saved` names the file of each thumbnail."""
    blocks = [_block(number, hit, saved[number - 1] if saved else "") for number, hit in enumerate(result.hits, 1)]
    return "\n\n".join([*blocks, _facts(result)])


def failure_sentence(result: ToolResult) -> str:
    """Why there is no hit; "" where there is one."""
    if result.failure is None:
        return ""
    return f"{result.kind} search: {_WHY[result.failure]} ({result.failure}: {result.detail})"


def as_json(result: ToolResult) -> dict[str, Any]:
    return {
        "tool": str(result.kind),
        "query": result.query,
        "hits": [_fields(hit) for hit in result.hits],
        "failure": result.failure,
        "detail": result.detail,
        "seconds": round(result.seconds, 3),
        "cost_usd": result.cost_usd,
        "cached": result.cached,
        "attempts": result.attempts,
    }


def _block(number: int, hit: ImageHit | TextHit, file: str) -> str:
    lines = [f"{number}. {hit.title or '(no title)'}", f"   {hit.url or '(no link)'}"]
    if isinstance(hit, TextHit):
        lines.append(textwrap.fill(hit.summary, _WIDTH, initial_indent="   ", subsequent_indent="   ", break_on_hyphens=False))
    else:
        lines.append(f"   thumbnail {file or hit.thumbnail.sha[:12]}, {len(hit.thumbnail.data):,} bytes")
    return "\n".join(lines)


def _facts(result: ToolResult) -> str:
    hits = f"{len(result.hits)} hit{'s' if len(result.hits) != 1 else ''}"
    source = "from the cache" if result.cached else f"{result.attempts} attempt{'s' if result.attempts != 1 else ''}"
    return f"{hits}, {result.seconds:.2f} s, {source}, ${result.cost_usd:.4f}"


def _fields(hit: ImageHit | TextHit) -> dict[str, Any]:
    shared = {"title": hit.title, "url": hit.url}
    if isinstance(hit, TextHit):
        return shared | {"summary": hit.summary}
    return shared | {"thumbnail": {"sha256": hit.thumbnail.sha, "bytes": len(hit.thumbnail.data)}}
