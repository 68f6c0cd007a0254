"""Google Lens at SerpAPI and Serper: requests, answers and refusals as their documentation has them; which address is asked."""

from __future__ import annotations

import time
from typing import Any

import pytest
from aiohttp import web as http

from mmsr_ray.config import Config, ProviderConfig
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.types import ToolFailure, ToolResult
from tests.tools.web import KEY, Web, configure, png

OWN = "https://example.org/own.jpg"

# serpapi.com/google-lens-api: visual_matches[] of {position, title, link, source, thumbnail, image, ...}
SERPAPI_EMPTY = {
    "search_metadata": {"id": "1", "status": "Success"},
    "search_parameters": {"engine": "google_lens", "url": OWN},
    "search_information": {"images_results_state": "Fully empty"},
    "error": "Google Lens hasn't returned any results for this query.",
}


def serpapi_matches(root: str) -> dict[str, Any]:
    def match(position: int, **fields: Any) -> dict[str, Any]:
        thumbnail = {"thumbnail": f"{root}/thumb/{position}", "thumbnail_width": 225, "thumbnail_height": 225}
        return (
            {"position": position, "source": "example.org", "image": "https://example.org/full.jpg", "image_width": 900}
            | thumbnail
            | fields
        )

    good = [match(i, title=f"Page {i}", link=f"https://example.org/{i}") for i in range(4, 9)]
    untitled, bare = match(1, link="https://example.org/1"), match(2, title="No picture", thumbnail=None)
    odd = match(3, title=["a list"], link=7)
    return {"search_metadata": {"status": "Success"}, "visual_matches": [untitled, bare, odd, "text", None, *good]}


# serper.dev, /lens: organic[] of {title, source, link, imageUrl, thumbnailUrl}
def serper_matches(root: str) -> dict[str, Any]:
    def row(number: int) -> dict[str, Any]:
        address = {
            "link": f"https://example.org/{number}",
            "imageUrl": "https://example.org/full.jpg",
            "thumbnailUrl": f"{root}/thumb/{number}",
        }
        return {"title": f"Page {number}", "source": "example.org"} | address

    bare = {"title": "No picture", "source": "example.org", "link": "https://example.org/0"}
    return {"searchParameters": {"url": OWN, "type": "lens", "engine": "google"}, "organic": [bare, *map(row, range(4, 9))], "credits": 3}


@pytest.fixture
def serpapi(web: Web, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("TEST_LENS_KEY", KEY)
    config = configure(web.root)
    config.tools.image_search.key_env = "TEST_LENS_KEY"
    return config


@pytest.fixture
def serper(web: Web, serpapi: Config) -> Config:
    url = f"{web.root}/serper"
    serpapi.tools.image_search = ProviderConfig(kind="serper_lens", url=url, key_env="TEST_LENS_KEY", rate_per_second=0)
    return serpapi


async def search(config: Config, data: bytes = png(), url: str | None = OWN) -> ToolResult:
    async with LocalTools(config) as tools:
        return await tools.image_search(data, url, "what?")


async def test_serpapi_request_and_matches(web: Web, serpapi: Config) -> None:
    web.rude["google_lens"] = lambda request, n: http.json_response(serpapi_matches(web.root))
    result = await search(serpapi)
    assert web.queries == [{"engine": "google_lens", "url": OWN, "api_key": KEY}]
    assert [(hit.title, hit.url) for hit in result.hits] == [(f"Page {i}", f"https://example.org/{i}") for i in range(4, 9)]
    assert web.counts["thumb"] == 5


async def test_serper_request_and_matches(web: Web, serper: Config) -> None:
    assert (await search(serper)).ok
    assert web.queries == [{"key": KEY, "url": OWN}]
    web.rude["serper"] = lambda request, n: http.json_response(serper_matches(web.root) if request.path == "/serper/lens" else {})
    result = await search(serper)
    assert [(hit.title, hit.url) for hit in result.hits] == [(f"Page {i}", f"https://example.org/{i}") for i in range(4, 9)]


@pytest.mark.parametrize(
    ("status", "said", "remedy"),
    [
        (401, {"error": "Invalid API key. Your API key should be here: https://serpapi.com/manage-api-key"}, "TEST_LENS_KEY"),
        (403, {"error": "This account has been deleted."}, "TEST_LENS_KEY"),
        (429, {"error": "Your account has run out of searches."}, "buy more"),
        (200, {"error": "Your account has run out of searches."}, "buy more"),
        (200, {"error": "Invalid API key."}, "TEST_LENS_KEY"),
    ],
)
async def test_a_refused_account_at_serpapi_is_final_and_says_what_to_do(
    web: Web, serpapi: Config, status: int, said: dict[str, str], remedy: str
) -> None:
    web.rude["google_lens"] = lambda request, n: http.json_response(said, status=status)
    start = time.perf_counter()
    result = await search(serpapi)
    assert result.failure is ToolFailure.REJECTED
    assert remedy in result.detail
    assert KEY not in result.detail
    assert (web.counts["google_lens"], web.counts["upload"]) == (1, 0)  # another address would not help
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("status", "said", "remedy"),
    [
        (401, {"message": "Unauthorized.", "statusCode": 401}, "TEST_LENS_KEY"),
        (403, {"message": "Unauthorized.", "statusCode": 403}, "TEST_LENS_KEY"),
        (400, {"message": "Not enough credits", "statusCode": 400}, "buy more"),
    ],
)
async def test_a_refused_account_at_serper_is_final_and_says_what_to_do(
    web: Web, serper: Config, status: int, said: dict[str, Any], remedy: str
) -> None:
    web.rude["serper"] = lambda request, n: http.json_response(said, status=status)
    result = await search(serper)
    assert (result.failure, web.counts["serper"], web.counts["upload"]) == (ToolFailure.REJECTED, 1, 0)
    assert remedy in result.detail


async def test_the_hourly_limit_is_a_rate_limit(web: Web, serpapi: Config) -> None:
    limited = {"error": "You are exceeding 1,000 searches per hour. Please upgrade or throttle your searches."}
    web.rude["google_lens"] = lambda request, n: http.json_response(limited, status=429, headers={"Retry-After": "0.1"}) if n == 1 else None
    result = await search(serpapi)
    assert result.ok
    assert result.attempts == 2


@pytest.mark.parametrize("dead", [(200, SERPAPI_EMPTY), (400, {"error": "Unsupported `url` parameter."}), (200, {"visual_matches": []})])
async def test_an_address_that_leads_nowhere_is_replaced_by_an_uploaded_copy(web: Web, serpapi: Config, dead: tuple[int, Any]) -> None:
    status, said = dead
    web.rude["google_lens"] = lambda request, n: http.json_response(said, status=status) if request.query["url"] == OWN else None
    result = await search(serpapi)
    assert result.ok
    assert [query["url"] for query in web.queries] == [OWN, f"{web.root}/img/{len(png())}"]
    assert web.counts["upload"] == 1


async def test_without_a_host_the_services_own_answer_stands(web: Web, serpapi: Config) -> None:
    serpapi.tools.image_host = ProviderConfig(kind="none")
    web.rude["google_lens"] = lambda request, n: http.json_response(SERPAPI_EMPTY)
    assert (await search(serpapi)).failure is ToolFailure.NO_RESULTS
    web.rude["google_lens"] = lambda request, n: http.json_response({"error": "Unsupported `url` parameter."}, status=400)
    assert (await search(serpapi)).failure is ToolFailure.REJECTED
    assert web.counts["google_lens"] == 2


async def test_an_outage_is_no_reason_to_upload(web: Web, serpapi: Config) -> None:
    serpapi.tools.attempts = 2
    web.rude["google_lens"] = lambda request, n: http.json_response({"error": "Proxy timeout"}, status=503)
    assert (await search(serpapi)).failure is ToolFailure.UNAVAILABLE
    assert (web.counts["google_lens"], web.counts["upload"]) == (2, 0)


async def test_matches_none_of_which_has_a_thumbnail(web: Web, serpapi: Config) -> None:
    web.rude["google_lens"] = lambda request, n: http.json_response({"visual_matches": [{"title": f"Page {i}"} for i in range(9)]})
    result = await search(serpapi, url=None)
    assert result.failure is ToolFailure.NO_RESULTS


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
async def test_what_is_no_picture_is_not_uploaded(web: Web, serpapi: Config, data: bytes) -> None:
    result = await search(serpapi, data, None)
    assert result.failure is ToolFailure.REJECTED
    assert "no picture" in result.detail
    assert web.counts["upload"] == 0
