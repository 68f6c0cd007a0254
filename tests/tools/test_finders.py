"""Pictures by words, and single pages: what data sets are built with."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web as http

from mmsr_ray.config import Config, ProviderConfig, TapeConfig
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.types import FoundPicture, TextHit, ToolFailure
from tests.tools.web import Web, configure, png


def finding(web: Web, kind: str = "serpapi_images", **tools: object) -> Config:
    paths = {"serpapi_images": "/search.json", "serper_images": "/serper", "none": ""}
    finder = ProviderConfig(kind=kind, url=web.root + paths[kind], rate_per_second=0, timeout_seconds=5.0)
    return configure(web.root, picture_finder=finder, attempts=2, **tools)


@pytest.mark.parametrize("kind", ["serpapi_images", "serper_images"])
async def test_pictures_come_with_page_source_and_licence_and_are_paid_once(web: Web, kind: str) -> None:
    async with LocalTools(finding(web, kind)) as tools:
        result = await tools.find_pictures("lighthouse", 3)
        again = await tools.find_pictures("lighthouse", 2)
    assert result.ok and len(result.hits) == 3 and again.cached and len(again.hits) == 2
    first = result.hits[0]
    assert isinstance(first, FoundPicture) and first.thumbnail.data == png(0)
    assert (first.title, first.url, first.picture_url) == ("Image 0", f"{web.root}/wiki/0", f"{web.root}/thumb/0")
    assert (first.source, first.licence) == ("Wiki", f"{web.root}/licence")
    assert web.counts["google_images"] + web.counts["serper"] == 1


async def test_without_a_licence_serper_tells_whose_the_picture_is(web: Web) -> None:
    row = {"title": "T", "imageUrl": f"{web.root}/thumb/0", "link": f"{web.root}/wiki/0", "source": "Wiki", "domain": "w.example"}
    rows = [row | {"credit": "An agency", "creator": "Somebody"}, row | {"creator": "Somebody"}, row]
    web.rude["serper"] = lambda request, n: http.json_response({"searchParameters": {"q": "x", "type": "images"}, "images": rows})
    async with LocalTools(finding(web, "serper_images")) as tools:
        hits = (await tools.find_pictures("lighthouse", 3)).hits
    assert [hit.licence for hit in hits if isinstance(hit, FoundPicture)] == ["An agency", "Somebody", ""]


async def test_a_picture_that_cannot_be_had_is_replaced_by_the_next(web: Web) -> None:
    web.rude["thumb"] = lambda request, n: http.Response(status=404) if request.path.endswith("/0") else None
    async with LocalTools(finding(web)) as tools:
        result = await tools.find_pictures("lighthouse", 2)
    assert [hit.title for hit in result.hits] == ["Image 1", "Image 2"]


async def test_a_large_picture_is_scaled_down(web: Web) -> None:
    web.rude["thumb"] = lambda request, n: http.Response(body=png(1, side=100), content_type="image/png")
    async with LocalTools(finding(web, picture_pixels=2_500)) as tools:
        (hit,) = (await tools.find_pictures("lighthouse", 1)).hits
    assert isinstance(hit, FoundPicture) and hit.thumbnail.data[16:24] == (50).to_bytes(4, "big") * 2  # a PNG's width and height


async def test_nothing_found_and_a_broken_service_are_told_apart(web: Web) -> None:
    nothing = {"search_metadata": {"status": "Success"}, "error": "Google hasn't returned any results for this query."}
    web.rude["google_images"] = lambda request, n: http.json_response(nothing)
    async with LocalTools(finding(web)) as tools:
        assert (await tools.find_pictures("x", 1)).failure is ToolFailure.NO_RESULTS
        web.rude["google_images"] = lambda request, n: http.Response(text="<html>", content_type="text/html")
        assert (await tools.find_pictures("y", 1)).failure is ToolFailure.BAD_RESPONSE
    async with LocalTools(finding(web, "none")) as tools:
        assert "set tools.picture_finder.kind" in (await tools.find_pictures("x", 1)).detail


async def test_a_page_has_its_whole_text_and_one_that_is_gone_is_no_failure(web: Web) -> None:
    async with LocalTools(finding(web)) as tools:
        (page,) = (await tools.read_page(f"{web.root}/wiki/4")).hits
        assert isinstance(page, TextHit) and page.summary.endswith("The tower is 4 metres high.") and page.title == "T 4"
        web.rude["reader"] = lambda request, n: http.json_response({"code": 404, "data": None}, status=404)
        assert (await tools.read_page(f"{web.root}/wiki/5")).failure is ToolFailure.NO_RESULTS


async def test_a_tape_gives_pictures_and_pages_back_without_the_web(web: Web, tmp_path: Path) -> None:
    async with LocalTools(finding(web, tape=TapeConfig("record", str(tmp_path)))) as tools:
        found, page = await tools.find_pictures("lighthouse", 2), await tools.read_page(f"{web.root}/wiki/4")
    await web.stop()
    async with LocalTools(finding(web, tape=TapeConfig("replay", str(tmp_path)))) as tools:
        assert (await tools.find_pictures("lighthouse", 2)).hits == found.hits
        assert (await tools.read_page(f"{web.root}/wiki/4")).hits == page.hits
        assert (await tools.find_pictures("harbour", 2)).failure is ToolFailure.TAPE_MISS
