"""The Atlas web over real HTTP: the product's own tools see what the pure searches say, and faults on request."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from mmsr_ray.atlas import looks, search
from mmsr_ray.atlas.prepare import AtlasError, WebProcess, cache_namespace, check_web, point_at, start_web, world_of
from mmsr_ray.atlas.teacher import AtlasTools
from mmsr_ray.atlas.world import Pool
from mmsr_ray.config import AtlasConfig, Config, load
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.types import ImageHit, TextHit, ToolFailure

ATLAS_YAML = Path(__file__).parents[2] / "jobs" / "configs" / "atlas.yaml"


@pytest.fixture(scope="module")
def web() -> Iterator[WebProcess]:
    started = start_web(load(ATLAS_YAML).atlas)
    yield started
    started.stop()


@pytest.fixture
def config(web: WebProcess) -> Config:
    found = load(ATLAS_YAML)
    return replace(found, tools=point_at(found.tools, web.base))


async def _faults(web: WebProcess, **values: float) -> None:
    async with aiohttp.ClientSession() as http, http.put(f"{web.base}/faults", json=values) as response:
        assert response.status == 200


async def test_the_tools_see_over_http_what_the_searches_say(config: Config) -> None:
    world = world_of(config.atlas)
    direct = AtlasTools(world, config.agent.topk)
    question = "What is the keeper of this place?"
    async with LocalTools(config) as tools:
        for entity in world.pool(Pool.TEST)[:6]:
            picture = looks.draw(entity.look, 5)
            here, there = await direct.image_search(picture, None, question), await tools.image_search(picture, None, question)
            assert [(h.title, h.thumbnail.sha) for h in there.hits if isinstance(h, ImageHit)] == [
                (h.title, h.thumbnail.sha) for h in here.hits if isinstance(h, ImageHit)
            ]
            query = f"{entity.name} keeper"
            here, there = await direct.text_search(query, question), await tools.text_search(query, question)
            assert [h.summary for h in there.hits if isinstance(h, TextHit)] == [h.summary for h in here.hits if isinstance(h, TextHit)]
            assert there.ok and len(there.hits) == config.agent.topk


async def test_a_query_that_names_nobody_finds_nothing(config: Config) -> None:
    async with LocalTools(config) as tools:
        assert (await tools.text_search("city", "which city?")).failure is ToolFailure.NO_RESULTS


async def test_faults_are_ridden_out_by_retries(config: Config, web: WebProcess) -> None:
    entity = world_of(config.atlas).pool(Pool.TRAIN)[3]
    await _faults(web, failure=0.15, limited=0.1)
    try:
        async with LocalTools(config) as tools:
            assert (await tools.text_search(f"{entity.name} song", "which song?")).ok
    finally:
        await _faults(web, failure=0.0, limited=0.0)


async def test_a_hang_lasts_until_the_client_goes_away(config: Config, web: WebProcess) -> None:
    await _faults(web, hang=1.0)
    patient = replace(config.tools.text_search, timeout_seconds=0.3)
    tools = replace(config.tools, text_search=patient, attempts=2, deadline_seconds=5.0)
    try:
        async with LocalTools(replace(config, tools=tools)) as hung:
            result = await hung.text_search("Anybody Atall", "?")
            assert result.failure is ToolFailure.TIMEOUT and result.attempts == 2
            assert 0.6 <= result.seconds < 3.0
    finally:
        await _faults(web, hang=0.0)
    async with LocalTools(config) as tools_again:  # those who hung are gone, the web serves as before
        assert (await tools_again.text_search(f"{world_of(config.atlas).entities[0].name} city", "?")).ok


def test_the_share_of_hangs_comes_from_the_config() -> None:
    atlas = replace(load(ATLAS_YAML).atlas, hang_rate=0.25, known=2, unknown_demonstrated=2, unknown_train=2, unknown_test=2)
    started = start_web(atlas)
    try:
        request = urllib.request.Request(f"{started.base}/faults", b"{}", {"Content-Type": "application/json"}, method="PUT")
        with urllib.request.urlopen(request, timeout=10) as response:
            assert json.load(response)["hang"] == 0.25
    finally:
        started.stop()


async def test_garbage_is_a_typed_failure(config: Config, web: WebProcess) -> None:
    await _faults(web, garbage=1.0)
    try:
        async with LocalTools(config) as tools:
            result = await tools.text_search("Anybody Atall", "?")
            assert result.failure is ToolFailure.BAD_RESPONSE and result.failure.infra
    finally:
        await _faults(web, garbage=0.0)


async def test_unknown_faults_and_engines_are_refused(web: WebProcess) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.put(f"{web.base}/faults", json={"flood": 1}) as response:
            assert response.status == 400
        async with http.get(f"{web.base}/search.json", params={"engine": "bing"}) as response:
            assert response.status == 400
        async with http.get(f"{web.base}/wiki/nobody") as response:
            assert response.status == 404


async def test_pages_are_html_with_pictures(config: Config, web: WebProcess) -> None:
    entity = world_of(config.atlas).entities[0]
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{web.base}/wiki/{entity.slug}") as response:
            body = await response.text()
            assert entity.name in body and entity.facts["city"] in body
        async with http.get(f"{web.base}/pictures/{entity.slug}/0.png") as response:
            assert looks.recognise(await response.read()) == entity.look


def test_a_web_that_is_down_is_named_with_the_remedy() -> None:
    with pytest.raises(AtlasError, match=r"no Atlas web answers at http://127\.0\.0\.1:9 .*start it with"):
        check_web("http://127.0.0.1:9")


def test_summaries_keep_the_page_order_and_prefer_the_question() -> None:
    page = "A is a place. A: the city is Runa. A: the song is Dawn."
    assert search.summarise(page, "What is the song of this place?", 1) == "A is a place."
    assert "Dawn" in search.summarise(page, "What is the song of this place?", 2)


def test_the_cache_tells_worlds_apart_but_not_their_weather() -> None:
    name = cache_namespace(AtlasConfig())
    assert cache_namespace(AtlasConfig(failure_rate=0.5, dir="elsewhere")) == name
    assert len({name, cache_namespace(AtlasConfig(seed=1)), cache_namespace(AtlasConfig(known=25))}) == 3
