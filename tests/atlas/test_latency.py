"""The tail of the Atlas web's latency: its quantiles, its cut, and that it follows from what is asked alone."""

from __future__ import annotations

import statistics
from typing import Any

import aiohttp
import pytest

from mmsr_ray.atlas import web
from mmsr_ray.atlas.latency import seconds_of
from mmsr_ray.atlas.prepare import cache_namespace
from mmsr_ray.atlas.world import World
from mmsr_ray.config import AtlasConfig


def drawn(count: int, **changes: float) -> list[float]:
    settings = {"seed": 0, "median": 0.2, "tail": 1.0, "most": 3.0} | changes
    return [seconds_of(f"question {i}".encode(), **settings) for i in range(count)]  # type: ignore[arg-type]


def test_the_median_is_the_median_and_the_tail_is_long_and_cut() -> None:
    values = sorted(drawn(4000))
    assert statistics.median(values) == pytest.approx(0.2, rel=0.1)
    assert values[3800] == pytest.approx(0.2 * 5.18, rel=0.2), "95 %: exp(1.645)"
    assert values[-1] == 3.0
    assert set(drawn(10, tail=0.0)) == {0.2}


def test_the_same_question_takes_as_long_again_and_another_seed_draws_anew() -> None:
    assert drawn(20) == drawn(20)
    assert len(set(drawn(20))) == 20
    assert drawn(20) != drawn(20, seed=1)


async def test_the_web_draws_by_what_is_asked_and_not_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_for: list[tuple[float, dict[str, Any]]] = []

    def watched(asked: bytes, **settings: Any) -> float:
        drawn_for.append((seconds_of(asked, **settings), settings))
        return 0.0

    monkeypatch.setattr(web, "seconds_of", watched)
    world = World(7, known=2, demonstrated=2, train=2, test=2)
    for _ in range(2):
        runner, base = await web.serve(world, "127.0.0.1", 0, web.Faults(latency=0.2, latency_tail=1.0, latency_max=0.6))
        try:
            async with aiohttp.ClientSession() as http:
                for query in range(6):
                    async with http.get(f"{base}/search.json", params={"q": f"who is {query} at {base}"}) as reply:
                        assert reply.status == 200
                async with http.post(f"{base}/upload", data=b"a picture") as reply:
                    assert (await reply.json())["url"].startswith(base)
        finally:
            await runner.cleanup()
    assert drawn_for[:7] == drawn_for[7:]
    assert len({seconds for seconds, _ in drawn_for}) >= 4
    assert drawn_for[0][1] == {"seed": 7, "median": 0.2, "tail": 1.0, "most": 0.6}


def test_the_tail_is_weather_and_not_the_world() -> None:
    assert cache_namespace(AtlasConfig(latency_tail=1.0, latency_max_seconds=9.0)) == cache_namespace(AtlasConfig())
