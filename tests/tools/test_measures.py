"""Measurements add up, quantiles keep their error, totals survive restarts, and the money of a call is where it was spent."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
from aiohttp import web as http

from mmsr_ray.config import PriceConfig
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.tools.measures import (
    RELATIVE_ERROR,
    Measures,
    Totals,
    add,
    call_rows,
    failures,
    provider_rows,
    quantile,
    saved_usd,
    saving,
    step_record,
)
from mmsr_ray.tools.providers import services
from mmsr_ray.tools.purse import SpentFile
from mmsr_ray.types import ToolFailure, ToolKind, ToolResult
from tests.tools.web import Web, configure, png

FREE = {name: PriceConfig() for name in services(configure("http://x").tools)}


@pytest.mark.parametrize("seed", range(3))
def test_quantiles_of_the_sum_of_actors_are_within_the_stated_error(seed: int) -> None:
    chance = random.Random(seed)
    actors = [Measures() for _ in range(3)]
    values = [chance.lognormvariate(-1.0, 1.2) for _ in range(3000)]
    for value in values:
        chance.choice(actors).request("reader", "ok", value, 0.0)
    total = add(actor.stats() for actor in actors)
    assert total["reader.answered"] == 3000
    values.sort()
    for share in (0.5, 0.95, 0.99):
        exact = values[int(share * 3000) - 1]
        found = quantile(total, "reader", share)
        assert found is not None
        assert abs(found - exact) <= (RELATIVE_ERROR + 0.01) * exact
    assert quantile(total, "summariser", 0.5) is None


def test_extreme_seconds_have_a_place() -> None:
    measures = Measures()
    for seconds in (0.0, -1.0, 1e9):
        measures.request("reader", "timeout", seconds, 0.0)
    assert quantile(measures.stats(), "reader", 0.01) == 0.001
    assert quantile(measures.stats(), "reader", 1.0) == pytest.approx(1000, rel=RELATIVE_ERROR)


def test_totals_never_go_back() -> None:
    totals = Totals()
    assert totals.take({"a1": {"x.requests": 5.0, "x.concurrency": 8.0}, "b1": {"x.requests": 1.0, "x.concurrency": 8.0}}) == {
        "x.requests": 6.0,
        "x.concurrency": 16.0,
    }
    assert (
        totals.take({"a2": {"x.requests": 2.0, "x.concurrency": 4.0}, "b1": {"x.requests": 1.0, "x.concurrency": 8.0}})["x.requests"] == 2.0
    )
    assert totals.take({"a2": {"x.requests": 3.0}}) == {"x.requests": 1.0}, "one that does not answer changes nothing"
    assert totals.take({"b1": {"x.requests": 4.0}}) == {"x.requests": 3.0}, "and is made up for when it does"
    assert totals.sums["x.requests"] == 12.0
    again = Totals(**json.loads(json.dumps({"sums": totals.sums, "seen": totals.seen})))
    assert again.take({"b1": {"x.requests": 4.0}}) == {}, "a restarted reader counts nothing twice"


def test_calls_by_outcome() -> None:
    measures = Measures()
    measures.call(ToolResult(ToolKind.TEXT, "q", seconds=1.0))
    measures.call(ToolResult(ToolKind.TEXT, "q", failure=ToolFailure.TIMEOUT, seconds=60.0))
    measures.call(ToolResult(ToolKind.IMAGE, "q", cached=True, partial=True, seconds=0.002))
    stats = measures.stats()
    assert failures(stats) == {"timeout": 1.0}
    record = step_record(stats, FREE)
    assert (record["calls"], record["cached_share"], record["partial_share"]) == (3.0, pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert record["seconds"]["text_p95"] == pytest.approx(60, rel=RELATIVE_ERROR)
    text = next(row for row in call_rows(stats) if row["tool"] == "text")
    assert (text["calls"], text["failures"]) == (2, {"timeout": 1})
    assert step_record({}, FREE)["calls"] == 0.0


async def test_a_group_of_eight_pays_for_one_image_search(web: Web, tmp_path: Path) -> None:
    config = configure(web.root)
    config.tools.image_search.price.per_call = 0.01
    prices = {name: section.price for name, section in services(config.tools).items()}
    web.delay["google_lens"] = 0.1
    async with LocalTools(config, spent=SpentFile(tmp_path / "spent.json")) as tools:
        results = await asyncio.gather(*(tools.image_search(png(), None, "q") for _ in range(8)))
        stats = tools.stats()
    assert all(result.ok for result in results)
    assert web.counts["google_lens"] == 1
    assert sorted(result.cost_usd for result in results) == [0.0] * 7 + [0.01]
    assert stats["image_search.cost_usd"] == 0.01
    assert saving(stats, prices)["searches"] == {"image searches": {"asked": 8, "paid": 1}}
    assert saved_usd(stats, prices) == pytest.approx(0.07)
    row = next(row for row in provider_rows(stats) if row["service"] == "image_search")
    assert (row["wanted"], row["joined"], row["requests"], row["cost_usd"]) == (8, 7, 1, 0.01)
    assert row["seconds"]["p50"] >= 0.1 * (1 - RELATIVE_ERROR)
    assert json.loads((tmp_path / "spent.json").read_text())["counted_usd"] == 0.01


async def test_answers_are_charged_failures_are_not_and_the_budget_is_the_end(web: Web, tmp_path: Path) -> None:
    config = configure(web.root, attempts=1)
    config.tools.text_search.price.per_call = 0.01
    config.tools.budget_usd = 0.03
    spent = SpentFile(tmp_path / "spent.json")
    async with LocalTools(config, spent=spent) as tools:
        web.results = 0
        nothing = await tools.text_search("nothing", "q")
        assert (nothing.failure, nothing.cost_usd) == (ToolFailure.NO_RESULTS, 0.01)
        web.results = 8
        web.rude["google"] = lambda request, n: http.Response(status=500)
        assert (await tools.text_search("broken", "q")).cost_usd == 0.0
        del web.rude["google"]
        assert [(await tools.text_search(f"q{i}", "q")).ok for i in range(2)] == [True, True]
        before = web.counts.total()
        refused = await tools.text_search("q9", "q")
        assert (refused.failure, refused.cost_usd, refused.attempts) == (ToolFailure.BUDGET, 0.0, 1)
        assert ToolFailure.BUDGET.infra
        assert web.counts.total() == before
        assert (await tools.text_search("q1", "q")).cached, "what is known still answers"
        assert (await tools.image_search(png(), None, "q")).ok, "what costs nothing is never refused"
        assert failures(tools.stats()) == {"no_results": 1, "unavailable": 1, "budget": 1}
    async with LocalTools(config, spent=spent) as tools:
        assert (await tools.text_search("q10", "q")).failure is ToolFailure.BUDGET, "a later submission has the same budget"
    config.tools.budget_usd = 0.04
    async with LocalTools(config, spent=spent) as tools:
        assert (await tools.text_search("q10", "q")).ok


async def test_a_budget_that_ends_among_the_pages_ends_the_call(web: Web) -> None:
    config = configure(web.root)
    config.tools.summariser.price.per_call = 0.01
    config.tools.budget_usd = 0.02
    async with LocalTools(config) as tools:
        result = await tools.text_search("q", "q")
    assert result.failure is ToolFailure.BUDGET, "two pages of five are no result to train on"
