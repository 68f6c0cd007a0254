"""The tools as Ray actors: shared limits, routing, a killed actor, overhead."""

from __future__ import annotations

import asyncio
import json
import pickle
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from aiohttp import web as http
from ray import cloudpickle

from mmsr_ray.config import CacheConfig, Config
from mmsr_ray.tools import actor
from mmsr_ray.tools.actor import RemoteTools, start_tools, stop_tools
from mmsr_ray.tools.errors import ToolsError
from mmsr_ray.tools.measures import Totals
from mmsr_ray.types import ToolFailure
from tests.tools.web import Web, configure, png

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, namespace="mmsr", log_to_driver=False)
    yield
    ray.shutdown()


def named(web: Web, name: str, **tools: object) -> Config:
    config = configure(web.root, **tools)
    config.run.name = name
    return config


async def start(config: Config) -> RemoteTools:
    return await asyncio.to_thread(start_tools, config)


async def test_results_single_flight_routing_and_overhead(cluster: None, web: Web, tmp_path: Path) -> None:
    config = named(web, "plain", cache=CacheConfig(dir=str(tmp_path)), actors=2)
    tools = await start(config)
    await tools.check()
    web.delay["google"] = 0.2
    results = await asyncio.gather(*(tools.text_search("same", "q") for _ in range(8)))
    assert all(r.ok and len(r.hits) == 5 for r in results)
    assert web.counts["google"] == 1
    image = await tools.image_search(png(), None, "q")
    assert image.ok
    assert len(image.hits) == 5
    other = pickle.loads(cloudpickle.dumps(RemoteTools.connect(config)))
    start_time = time.perf_counter()
    for _ in range(200):
        assert (await other.text_search("same", "q")).cached
    one_by_one = (time.perf_counter() - start_time) / 200
    start_time = time.perf_counter()
    await asyncio.gather(*(other.image_search(png(), None, "q") for _ in range(200)))
    together = (time.perf_counter() - start_time) / 200
    print(f"cached call through the actor: {one_by_one * 1e3:.2f} ms alone, {together * 1e3:.2f} ms of 200 at once")
    assert one_by_one < 0.01
    stats = await tools.stats()
    assert stats["text_search.requests"] == 1
    assert stats["cache.query.hits"] >= 200
    stop_tools(config)


async def test_one_rate_limit_and_one_silence_for_all_actors(cluster: None, web: Web) -> None:
    config = named(web, "limited", actors=2)
    config.tools.text_search.rate_per_second, config.tools.text_search.burst = 20.0, 5
    tools = await start(config)
    start_time = time.perf_counter()
    assert all(r.ok for r in await asyncio.gather(*(tools.text_search(f"q{i}", "x") for i in range(25))))
    assert 0.95 < time.perf_counter() - start_time < 4.0
    times: list[float] = []

    def limited(request: http.Request, n: int) -> http.Response | None:
        times.append(time.perf_counter())
        return http.Response(status=429, headers={"Retry-After": "1.5"}) if len(times) == 1 else None

    await asyncio.sleep(0.6)  # leases lapse
    web.rude["google"] = limited
    first = asyncio.create_task(tools.text_search("first", "x"))
    await asyncio.sleep(0.3)
    assert all(r.ok for r in await asyncio.gather(*(tools.text_search(f"later{i}", "x") for i in range(4))))
    assert (await first).ok
    assert min(t - times[0] for t in times[1:]) > 1.3
    stop_tools(config)


async def test_a_killed_actor_loses_no_call_and_no_cache(cluster: None, web: Web, tmp_path: Path) -> None:
    config = named(web, "killed", actors=2, cache=CacheConfig(dir=str(tmp_path)))
    tools = await start(config)
    web.delay["google"] = 0.5
    calls = asyncio.gather(*(tools.text_search(f"q{i}", "x") for i in range(40)))
    await asyncio.sleep(0.3)
    ray.kill(ray.get_actor("tools:killed:1"), no_restart=False)
    assert all(r.ok for r in await calls)
    before = web.counts.total()
    await asyncio.sleep(0.5)  # the file is written behind the callers: a killed process loses its last moments
    ray.kill(ray.get_actor("tools:killed:0"), no_restart=False)
    assert all(r.ok and r.cached for r in await asyncio.gather(*(tools.text_search(f"q{i}", "x") for i in range(40))))
    assert web.counts.total() == before
    ray.kill(ray.get_actor("tools:killed:0"))  # for good: its neighbour takes over
    assert all(r.ok for r in await asyncio.gather(*(tools.text_search(f"q{i}", "x") for i in range(40))))
    stop_tools(config)
    start_time = time.perf_counter()
    gone = await tools.text_search("q", "x")
    assert gone.failure is ToolFailure.UNAVAILABLE
    assert time.perf_counter() - start_time < 10
    with pytest.raises(ToolsError, match="not running"):
        RemoteTools.connect(config)


async def test_one_budget_for_all_actors_over_restarts(cluster: None, web: Web, tmp_path: Path) -> None:
    """Two actors spend 0.30 USD at 0.01: 30 requests and no more, though an actor and the keeper of the money are killed."""
    config = named(web, "paid", actors=2, budget_usd=0.30)
    config.run.dir = str(tmp_path)
    config.tools.text_search.price.per_call = 0.01
    tools = await start(config)
    before = await tools.account()
    assert before is not None and (before.budget, before.spent) == (0.30, 0.0)
    first = await asyncio.gather(*(tools.text_search(f"a{i}", "x") for i in range(10)))
    assert sum(r.cost_usd for r in first) == pytest.approx(0.10)
    totals = Totals()
    assert totals.take(await tools.readings())["text_search.answered"] == 10
    await tools.settle()
    assert json.loads((tmp_path / "paid" / "tools-spent.json").read_text())["counted_usd"] == 0.10
    ray.kill(ray.get_actor("tools:paid:0"), no_restart=False)
    ray.kill(ray.get_actor("tools:paid:quota"), no_restart=False)
    rest = await asyncio.gather(*(tools.text_search(f"b{i}", "x") for i in range(40)))
    kinds = Counter(r.failure for r in rest)
    assert set(kinds) <= {None, ToolFailure.BUDGET}
    assert web.counts["google"] <= 30, "never more than the budget"
    assert web.counts["google"] >= 20, "and hardly less"
    totals.take(await tools.readings())
    assert totals.sums["text_search.answered"] >= web.counts["google"] - 10, "what a killed actor had not told is missing, no more"
    after = await tools.account()
    assert after is not None and after.spent <= 0.30
    stop_tools(config)


async def test_tools_with_other_settings_are_not_taken_for_ones_own(cluster: None, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "_HANDOVER_SECONDS", 1.0)
    config = named(web, "twice", actors=1)
    tools = await start(config)
    assert (await (await start(config)).text_search("q", "x")).ok, "the same settings: the same actors"
    other = named(web, "twice", actors=1, budget_usd=5.0)
    with pytest.raises(ToolsError, match="up with other settings"):
        await start(other)
    stop_tools(config)
    del tools
    assert (await (await start(other)).account()).budget == 5.0  # type: ignore[union-attr]
    stop_tools(other)
