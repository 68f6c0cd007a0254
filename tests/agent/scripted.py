"""A scripted policy and a scripted web for the agent: the real codec, transcript and workflows around them."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from mmsr_ray.agent.tokens import Codec
from mmsr_ray.types import Generation, ImageHit, Picture, Sample, Sampling, TextHit, ToolKind, ToolResult


def png(width: int, height: int, colour: tuple[int, int, int] = (9, 99, 200)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def picture(width: int = 28, height: int = 28) -> Picture:
    data = png(width, height)
    return Picture(data, hashlib.sha256(data).hexdigest())


def sample(question: str = "What is this?", image: bytes | None = None) -> Sample:
    return Sample("uid-1", question, png(56, 56) if image is None else image, ("Paris",))


def image_found(title: str = "Paris in spring", n: int = 2) -> ToolResult:
    return ToolResult(ToolKind.IMAGE, "sha", tuple(ImageHit(title, picture(), f"http://x/{i}") for i in range(n)))


def text_found(summary: str = "Paris is a city.", n: int = 2) -> ToolResult:
    return ToolResult(ToolKind.TEXT, "q", tuple(TextHit(f"http://x/{i}", summary, "Paris") for i in range(n)))


@dataclass
class Script:
    """A policy that says prepared turns, and remembers what it was asked."""

    codec: Codec
    turns: Sequence[str]
    delay: float = 0.0
    calls: list[tuple[list[int], list[Picture], Sampling]] = field(default_factory=list)

    async def __call__(self, prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        text = self.turns[len(self.calls)]
        self.calls.append((prompt_ids, pictures, sampling))
        await asyncio.sleep(self.delay)
        ids = self.codec.encode_turn(text)
        stopped = len(ids) <= sampling.max_tokens
        ids = ids[: sampling.max_tokens]
        return Generation(ids, [-0.5] * len(ids), [3] * len(ids), stopped)


@dataclass
class Web:
    """A web with prepared results, and a record of the calls."""

    image: ToolResult = field(default_factory=image_found)
    text: ToolResult = field(default_factory=text_found)
    delay: float = 0.0
    calls: list[str] = field(default_factory=list)

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        self.calls.append("image")
        await asyncio.sleep(self.delay)
        return self.image

    async def text_search(self, query: str, question: str) -> ToolResult:
        self.calls.append(query)
        await asyncio.sleep(self.delay)
        return self.text
