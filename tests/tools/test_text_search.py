"""Text search services over HTTP: the field lists of their documentation, their errors, and hits that are filled in part.

The answers are written by hand from serpapi.com/search-api and /api-status-and-error-codes, serper.dev's playground and
docs.searxng.org/dev/search_api.html with searx/webutils.py.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web as http

from mmsr_ray.config import ProviderConfig
from mmsr_ray.tools.errors import AccountError, ProviderError, Redactor
from mmsr_ray.tools.guard import Trace
from mmsr_ray.tools.http import Http
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.tools.parts import fill
from mmsr_ray.tools.providers.base import Lead
from mmsr_ray.tools.providers.search import SearxNg, SerpApiGoogle, SerperGoogle
from mmsr_ray.types import TextHit, ToolFailure
from tests.tools.web import KEY, Web, configure

SERPAPI = {
    "search_metadata": {
        "id": "66b1", "status": "Success", "json_endpoint": "https://serpapi.com/searches/1/66b1.json", "total_time_taken": 0.87,
        "created_at": "2026-01-01 00:00:00 UTC", "processed_at": "2026-01-01 00:00:01 UTC", "google_url": "https://www.google.com/search?q=tower",
    },
    "search_parameters": {"engine": "google", "q": "tower", "google_domain": "google.com", "device": "desktop"},
    "search_information": {"query_displayed": "tower", "total_results": 2, "organic_results_state": "Results for exact spelling"},
    "organic_results": [
        {
            "position": 1, "title": "Tower\u202e one", "link": "https://e.org/a#top", "redirect_link": "https://www.google.com/url?q=x",
            "displayed_link": "https://e.org", "favicon": "https://serpapi.com/f.png", "snippet": "A tower", "source": "E",
            "snippet_highlighted_words": ["tower"], "sitelinks": {"inline": [{"title": "More", "link": "https://e.org/more"}]},
        },
        {"position": 2, "title": "No link"},
        {"position": 3, "title": "Two", "link": "https://e.org/b"},
        {"position": 4, "title": "One again", "link": "https://e.org/a#history"},
        {"position": 5, "title": "Script", "link": "javascript:alert(1)"},
        "junk",
        {"position": 6, "title": None, "link": "https://e.org/c"},
    ],
    "related_questions": [{"question": "How high?", "link": "https://e.org/q"}],
    "serpapi_pagination": {"current": 1, "next": "https://serpapi.com/search.json?start=10"},
}  # fmt: skip
SERPAPI_EMPTY = {
    "search_metadata": {"status": "Success"},
    "search_information": {"total_results": 0, "organic_results_state": "Fully empty"},
    "error": "Google hasn't returned any results for this query.",
}
SERPER = {
    "searchParameters": {"q": "tower", "type": "search", "num": 10, "engine": "google"},
    "knowledgeGraph": {"title": "Tower", "attributes": {}},
    "organic": [
        {"title": "One", "link": "https://e.org/a", "snippet": "s", "date": "1 Jan 2026", "position": 1, "sitelinks": [{"title": "t", "link": "l"}]},
        {"title": "Two", "link": "https://e.org/b", "snippet": "s", "position": 2},
    ],
    "peopleAlsoAsk": [{"question": "q", "snippet": "s", "title": "t", "link": "https://e.org/q"}],
    "relatedSearches": [{"query": "towers"}],
    "credits": 1,
}  # fmt: skip
SEARXNG = {
    "query": "tower",
    "results": [
        {"url": "https://e.org/a", "title": "One", "content": "c", "engine": "brave", "engines": ["brave"], "positions": [1], "score": 1.0,
         "parsed_url": ["https", "e.org", "/a", "", "", ""], "template": "default.html", "category": "general", "publishedDate": None},
        {"url": None, "title": "An answer box"},
        {"url": "https://e.org/b", "title": "Two", "content": "c", "engine": "brave"},
    ],
    "answers": [], "corrections": [], "infoboxes": [], "suggestions": [], "unresponsive_engines": [["google", "CAPTCHA"]],
}  # fmt: skip


def config(kind: str, url: str) -> ProviderConfig:
    return ProviderConfig(kind=kind, url=url, key_env="SOME_KEY", timeout_seconds=5.0)


def answering(value: Any, status: int = 200, **headers: str) -> Any:
    return lambda request, n: http.json_response(value, status=status, headers=headers)


async def test_serpapi_google(web: Web) -> None:
    web.rude["google"] = answering(SERPAPI)
    async with Http(Redactor([KEY])) as client:
        provider = SerpApiGoogle(config("serpapi", f"{web.root}/search.json"), client, KEY)
        leads = await provider.search("tower & co", 10)
        assert leads == [Lead("Tower one", "https://e.org/a#top"), Lead("Two", "https://e.org/b"), Lead("", "https://e.org/c")]
        assert web.queries == [{"engine": "google", "q": "tower & co", "api_key": KEY}]
        assert await provider.search("tower", 2) == leads[:2]
        web.rude["google"] = answering(SERPAPI_EMPTY)
        with pytest.raises(ProviderError) as none:
            await provider.search("tower", 10)
        assert none.value.failure is ToolFailure.NO_RESULTS


async def test_serper_search(web: Web) -> None:
    async with Http(Redactor([KEY])) as client:
        provider = SerperGoogle(config("serper", f"{web.root}/serper/"), client, KEY)
        await provider.search("tower & co", 10)
        assert web.queries == [{"key": KEY, "q": "tower & co", "num": 10}]
        seen: list[str] = []
        web.rude["serper"] = lambda request, n: seen.append(request.path) or http.json_response(SERPER)
        assert await provider.search("tower", 10) == [Lead("One", "https://e.org/a"), Lead("Two", "https://e.org/b")]
        assert seen == ["/serper/search"]
        web.rude["serper"] = answering(SERPER | {"organic": []})
        assert await provider.search("tower", 10) == []


async def test_searxng(web: Web) -> None:
    seen: list[dict[str, str]] = []
    web.rude["searxng"] = lambda request, n: seen.append(dict(request.query)) or http.json_response(SEARXNG)
    async with Http(Redactor()) as client:
        provider = SearxNg(config("searxng", f"{web.root}/searxng/"), client, "")
        assert await provider.search("tower", 10) == [Lead("One", "https://e.org/a"), Lead("Two", "https://e.org/b")]
        assert seen == [{"q": "tower", "format": "json"}]
        web.rude["searxng"] = answering(SEARXNG | {"results": []})
        with pytest.raises(ProviderError, match=r"engines do not answer: .*CAPTCHA") as silent:
            await provider.search("tower", 10)
        assert (silent.value.failure, silent.value.retry) == (ToolFailure.UNAVAILABLE, True)
        web.rude["searxng"] = answering(SEARXNG | {"results": [], "unresponsive_engines": []})
        assert await provider.search("tower", 10) == []
        web.rude["searxng"] = lambda request, n: http.Response(status=403, text="<!doctype html><title>403 Forbidden</title>")
        with pytest.raises(AccountError, match=r"add json to search\.formats in its settings\.yml"):
            await provider.search("tower", 10)


@pytest.mark.parametrize(
    ("kind", "status", "body", "says"),
    [
        ("serpapi", 429, {"error": "Your account has run out of searches."}, "no searches left"),
        ("serpapi", 200, {"error": "Your searches for the month are exhausted. You can upgrade plans on SerpApi.com website."}, "no searches left"),
        ("serpapi", 401, {"error": "Invalid API key. Your API key should be here: https://serpapi.com/manage-api-key"}, "variable SOME_KEY"),
        ("serper", 400, {"message": "Not enough credits", "statusCode": 400}, "no searches left"),
        ("serper", 403, {"message": "Unauthorized.", "statusCode": 403}, "variable SOME_KEY"),
    ],
)  # fmt: skip
async def test_an_account_that_is_refused_is_not_asked_again(web: Web, kind: str, status: int, body: Any, says: str) -> None:
    counted = "google" if kind == "serpapi" else "serper"
    web.rude[counted] = answering(body, status)
    setup = configure(web.root, text_search=config(kind, f"{web.root}/{'search.json' if kind == 'serpapi' else 'serper'}"))
    setup.tools.text_search.key_env = ""
    async with LocalTools(setup) as tools:
        result = await tools.text_search("tower", "q")
    assert (result.failure, web.counts[counted]) == (ToolFailure.REJECTED, 1)
    assert says.replace("variable SOME_KEY", "key_env") in result.detail


async def test_too_many_searches_in_an_hour_is_another_429(web: Web) -> None:
    busy = {"error": "You are exceeding your plan's hourly throughput limit of 50 searches."}
    web.rude["google"] = lambda request, n: http.json_response(busy, status=429, headers={"Retry-After": "0.2"}) if n == 1 else None
    async with LocalTools(configure(web.root)) as tools:
        result = await tools.text_search("tower", "q")
    assert (result.ok, result.attempts) == (True, 2)


# ---------------------------------------------------------------------------------------------------- filling


def trace(seconds: float = 5.0) -> Trace:
    return Trace(asyncio.get_running_loop().time() + seconds)


LEADS = [Lead(str(i), f"https://e.org/{i}") for i in range(8)]


async def hit(lead: Lead) -> TextHit:
    await asyncio.sleep(0.01)
    return TextHit(lead.url, "s", lead.title)


async def test_all_that_was_led_to_is_not_partial() -> None:
    few, enough = trace(), trace()
    assert len(await fill(LEADS[:3], 5, hit, few)) == 3
    assert [h.title for h in await fill(LEADS, 5, hit, enough)] == list("01234")
    assert not few.partial
    assert not enough.partial


async def test_no_spare_is_begun_before_a_lead_failed() -> None:
    begun: list[str] = []

    async def some(lead: Lead) -> TextHit:
        begun.append(lead.title)
        await asyncio.sleep(0.2 if lead.title == "1" else 0.0)
        if lead.title == "0":
            raise ProviderError(ToolFailure.NO_RESULTS, "gone")
        return await hit(lead)

    assert [h.title for h in await fill(LEADS, 3, some, trace())] == ["1", "2", "3"]
    assert begun == ["0", "1", "2", "3"]


async def test_fewer_hits_than_leads_is_partial(web: Web) -> None:
    web.rude["reader"] = lambda request, n: http.Response(status=404) if request.path[-1] in "01234" else None
    async with LocalTools(configure(web.root)) as tools:
        result = await tools.text_search("q", "question")
        assert ([h.url[-1] for h in result.hits], result.partial) == (["5", "6", "7"], True)
    web.rude.clear()
    async with LocalTools(configure(web.root)) as tools:
        assert not (await tools.text_search("other", "question")).partial


async def test_at_the_deadline_what_is_there_is_returned_and_marked(web: Web) -> None:
    web.rude["reader"] = lambda request, n: None if request.path[-1] in "03" else http.Response(status=500)
    async with LocalTools(configure(web.root, deadline_seconds=1.0)) as tools:
        result = await tools.text_search("q", "x")
    assert ([h.url[-1] for h in result.hits], result.partial) == (["0", "3"], True)
    assert result.seconds < 1.5


async def test_a_page_that_never_comes_does_not_cost_the_others() -> None:
    async def some(lead: Lead) -> TextHit:
        await asyncio.sleep(30.0 if lead.title == "2" else 0.0)
        return await hit(lead)

    start, call = time.perf_counter(), trace(0.5)
    assert [h.title for h in await fill(LEADS, 5, some, call)] == list("0134")
    assert call.partial
    assert time.perf_counter() - start < 2.0


async def test_an_account_that_is_refused_stops_the_search_for_spares(web: Web) -> None:
    web.rude["v1"] = answering({"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}, 401)
    async with LocalTools(configure(web.root)) as tools:
        result = await tools.text_search("q", "x")
    assert (result.failure, result.partial) == (ToolFailure.REJECTED, False)
    assert "refuses the key" in result.detail
    assert (web.counts["reader"], web.counts["v1"]) == (5, 5)  # of 8 leads
