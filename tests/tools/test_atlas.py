"""The tools against the Atlas web: right answers on a good day, and on a bad one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from mmsr_ray.atlas.web import Faults, serve
from mmsr_ray.atlas.world import World
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.types import Sample, TextHit
from tests.tools.web import configure

WORLD = World(seed=3, known=4, demonstrated=8, train=24, test=8)


@pytest_asyncio.fixture
async def faults() -> AsyncIterator[tuple[str, Faults]]:
    """The web's address and its knobs."""
    knobs = Faults()
    runner, base = await serve(WORLD, "127.0.0.1", 0, knobs)
    yield base, knobs
    await runner.cleanup()


async def searched(tools: LocalTools, sample: Sample) -> tuple[int, bool]:
    """How many hits the picture has, and whether a text search for the name that they give holds the answer."""
    image = await tools.image_search(sample.image, sample.image_url, sample.question)
    assert image.ok, image
    text = await tools.text_search(f"{image.hits[0].title} {sample.question}", sample.question)
    assert text.ok, text
    told = image.hits[0].title + " ".join(hit.summary for hit in text.hits if isinstance(hit, TextHit))
    return len(image.hits), sample.answers[0].lower() in told.lower()


async def test_the_answer_is_found(faults: tuple[str, Faults]) -> None:
    async with LocalTools(configure(faults[0])) as tools:
        await tools.check()
        found = await asyncio.gather(*(searched(tools, sample) for sample in WORLD.samples("train", 24)))
        assert all(hits >= 1 for hits, _ in found)
        assert sum(right for _, right in found) >= 22


async def test_a_bad_day_costs_retries_not_results(faults: tuple[str, Faults]) -> None:
    base, knobs = faults
    async with LocalTools(configure(base, attempts=10, deadline_seconds=30.0)) as tools:
        knobs.failure, knobs.limited, knobs.garbage = 0.15, 0.05, 0.1
        found = await asyncio.gather(*(searched(tools, sample) for sample in WORLD.samples("train", 24)))
        assert sum(right for _, right in found) >= 22
        stats = tools.stats()
        assert sum(n for name, n in stats.items() if name.endswith((".unavailable", ".bad_response", ".rate_limited"))) > 0
