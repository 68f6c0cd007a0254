"""The two tools against a real HTTP server: results, caches, limits, failures."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from pathlib import Path

import pytest
from aiohttp import web as http

from mmsr_ray.config import CacheConfig, ProviderConfig
from mmsr_ray.tools.errors import ToolsError
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.types import ImageHit, TextHit, ToolFailure
from tests.tools.web import KEY, Web, configure, png


async def test_image_search_uploads_fetches_thumbnails_and_caches(web: Web) -> None:
    async with LocalTools(configure(web.root)) as tools:
        result = await tools.image_search(png(), None, "what?")
        assert result.ok
        assert [h.title for h in result.hits] == [f"Match {i}" for i in range(5)]
        assert all(isinstance(h, ImageHit) and h.thumbnail.sha == hashlib.sha256(h.thumbnail.data).hexdigest() for h in result.hits)
        assert web.queries[0]["url"].startswith(f"{web.root}/img/")
        assert (result.query, result.cached) == (hashlib.sha256(png()).hexdigest(), False)
        before = web.counts.total()
        again = await tools.image_search(png(), None, "another question")
        assert again.hits == result.hits
        assert again.cached
        assert web.counts.total() == before


async def test_image_search_with_a_url_uploads_nothing(web: Web) -> None:
    async with LocalTools(configure(web.root)) as tools:
        assert (await tools.image_search(b"", "https://example.org/a.png", "q")).ok
        assert web.counts["upload"] == 0
        assert web.queries[0]["url"] == "https://example.org/a.png"


async def test_bad_thumbnails_are_replaced_by_the_next_hits(web: Web) -> None:
    bad = {"0": http.Response(status=404), "1": http.Response(body=b"no picture"), "2": http.Response(body=png() + bytes(5_000_000))}
    web.rude["thumb"] = lambda request, n: bad.get(request.match_info["n"])
    async with LocalTools(configure(web.root)) as tools:
        result = await tools.image_search(png(), None, "q")
        assert [h.title for h in result.hits] == [f"Match {i}" for i in range(3, 8)]


async def test_hits_without_title_or_thumbnail_do_not_count_and_data_urls_do(web: Web) -> None:
    import base64

    inline = "data:image/png;base64," + base64.b64encode(png(7)).decode()
    matches = [{"title": "", "thumbnail": inline}, {"title": "no picture"}, {"title": "Good\x00\u202e one", "thumbnail": inline}, "junk"]
    web.rude["google_lens"] = lambda request, n: http.json_response({"visual_matches": matches})
    async with LocalTools(configure(web.root)) as tools:
        result = await tools.image_search(png(), None, "q")
        assert [(h.title, h.thumbnail.data) for h in result.hits if isinstance(h, ImageHit)] == [("Good one", png(7))]


async def test_text_search_summarises_for_the_users_question(web: Web) -> None:
    async with LocalTools(configure(web.root)) as tools:
        result = await tools.text_search("tower height", "How high is it?")
        assert result.ok
        assert [h.url for h in result.hits] == [f"{web.root}/wiki/{i}" for i in range(5)]
        assert all(isinstance(h, TextHit) and h.summary.startswith("Summary") for h in result.hits)
        assert all("How high is it?" in p and "tower height" not in p and "\\u0000" not in p for p in web.prompts)
        assert web.queries[0]["q"] == "tower height"
        other = await tools.text_search("tower height", "Who built it?")  # new question: summaries anew, pages not
        assert other.ok
        assert (web.counts["google"], web.counts["reader"], web.counts["v1"]) == (1, 5, 10)


async def test_a_failing_page_is_replaced_until_the_list_ends(web: Web) -> None:
    web.rude["reader"] = lambda request, n: http.Response(status=404) if request.path[-1] in "01234" else None
    async with LocalTools(configure(web.root)) as tools:
        result = await tools.text_search("q", "question")
        assert [h.url[-1] for h in result.hits] == ["5", "6", "7"]


async def test_nothing_found_is_not_infrastructure(web: Web) -> None:
    web.results = web.matches = 0
    async with LocalTools(configure(web.root)) as tools:
        for _ in range(2):
            for result in (await tools.text_search("q", "x"), await tools.image_search(png(), None, "x")):
                assert result.failure is ToolFailure.NO_RESULTS
        assert (web.counts["google"], web.counts["google_lens"]) == (1, 1)
        web.rude["google"] = lambda request, n: http.json_response({"error": "Google hasn't returned any results for this query."})
        assert (await tools.text_search("other", "x")).failure is ToolFailure.NO_RESULTS


async def test_what_is_gone_is_not_asked_for_again_for_a_while(web: Web) -> None:
    web.rude["reader"] = lambda request, n: http.Response(status=404) if request.path[-1] in "01" else None
    web.rude["thumb"] = lambda request, n: http.Response(status=404) if request.match_info["n"] == "0" else None
    async with LocalTools(configure(web.root, cache=CacheConfig(negative_seconds=3.0))) as tools:
        assert [h.url[-1] for h in (await tools.text_search("q", "x")).hits] == list("23456")
        assert (await tools.image_search(png(), None, "x")).ok
        before = web.counts["reader"], web.counts["thumb"]
        again = await tools.text_search("q", "another question")
        assert [h.url[-1] for h in again.hits] == list("23456")
        assert (await tools.image_search(png(), None, "x")).cached
        assert (web.counts["reader"], web.counts["thumb"]) == before
        assert tools.stats()["cache.page.negative_hits"] == 2
        await asyncio.sleep(3.1)
        web.rude.clear()
        assert [h.url[-1] for h in (await tools.text_search("q", "a third question")).hits] == list("01234")


async def test_32_calls_of_one_second_take_about_one_second(web: Web) -> None:
    web.delay["google"] = 1.0
    config = configure(web.root, summariser=ProviderConfig(kind="extractive"))
    async with LocalTools(config) as tools:
        start = time.perf_counter()
        results = await asyncio.gather(*(tools.text_search(f"query {i}", "tower") for i in range(32)))
        assert all(r.ok for r in results)
        assert time.perf_counter() - start < 2.5
        assert web.peak >= 32


async def test_single_flight(web: Web) -> None:
    web.delay["google"] = web.delay["google_lens"] = 0.1
    config = configure(web.root)
    config.tools.text_search.price.per_call = 0.01
    async with LocalTools(config) as tools:
        results = await asyncio.gather(
            *(tools.text_search("same", "q") for _ in range(8)), *(tools.image_search(png(), None, "q") for _ in range(8))
        )
        assert all(r.ok for r in results)
        assert (web.counts["google"], web.counts["google_lens"], web.counts["upload"], web.counts["reader"]) == (1, 1, 1, 5)
        assert sum(r.cost_usd for r in results) == pytest.approx(0.01)  # one call was paid, and one result says so


async def test_deadline_covers_everything_and_keeps_what_is_there(web: Web) -> None:
    web.delay["google"] = 30.0
    async with LocalTools(configure(web.root, deadline_seconds=0.5)) as tools:
        start = time.perf_counter()
        assert (await tools.text_search("q", "x")).failure is ToolFailure.TIMEOUT
        assert time.perf_counter() - start < 1.0
        del web.delay["google"]

        web.rude["reader"] = lambda request, n: None if request.path[-1] in "03" else http.Response(status=500)
        result = await tools.text_search("other", "x")
        assert [h.url[-1] for h in result.hits] == ["0", "3"]
        assert result.seconds < 1.0


async def test_retries_with_attempts_counted(web: Web) -> None:
    web.rude["google"] = lambda request, n: (
        [http.Response(status=503), http.Response(text="<html>garbage"), http.json_response([1])][n - 1] if n <= 3 else None
    )
    async with LocalTools(configure(web.root)) as tools:
        result = await tools.text_search("q", "x")
        assert result.ok
        assert (result.attempts, web.counts["google"]) == (4, 4)


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (b"<html>garbage", ToolFailure.BAD_RESPONSE),
        (b'{"weather": "fine"}', ToolFailure.BAD_RESPONSE),
        (b'{"organic_results": {"a": 1}}', ToolFailure.BAD_RESPONSE),
        (b"[" * 100_000, ToolFailure.BAD_RESPONSE),
        (b'{"error": "Your account has no more searches."}', ToolFailure.UNAVAILABLE),
    ],
)
async def test_garbage(web: Web, body: bytes, failure: ToolFailure) -> None:
    web.rude["google"] = lambda request, n: http.Response(body=body, content_type="application/json")
    async with LocalTools(configure(web.root, attempts=2)) as tools:
        result = await tools.text_search("q", "x")
        assert (result.failure, result.hits, web.counts["google"]) == (failure, (), 2)


async def test_rejection_is_not_retried(web: Web) -> None:
    web.rude["google"] = lambda request, n: http.Response(status=401, text="Invalid API key")
    async with LocalTools(configure(web.root)) as tools:
        result = await tools.text_search("q", "x")
        assert (result.failure, result.attempts, web.counts["google"]) == (ToolFailure.REJECTED, 1, 1)
        assert "401" in result.detail


async def test_retry_after_silences_all_callers(web: Web) -> None:
    times: list[float] = []

    def limited(request: http.Request, n: int) -> http.Response | None:
        times.append(time.perf_counter())
        return http.Response(status=429, headers={"Retry-After": "1"}) if n == 1 else None

    web.rude["google"] = limited
    async with LocalTools(configure(web.root)) as tools:
        first = asyncio.create_task(tools.text_search("one", "x"))
        await asyncio.sleep(0.2)
        results = [await tools.text_search("two", "x"), await first]
        assert all(r.ok for r in results)
        assert len(times) == 3
        assert times[1] - times[0] >= 0.95


async def test_retry_after_beyond_the_deadline_fails_at_once(web: Web) -> None:
    web.rude["google"] = lambda request, n: http.Response(status=429, headers={"Retry-After": "600"})
    async with LocalTools(configure(web.root, deadline_seconds=5.0)) as tools:
        start = time.perf_counter()
        results = [await tools.text_search("one", "x"), await tools.text_search("two", "x")]
        assert [r.failure for r in results] == [ToolFailure.RATE_LIMITED] * 2
        assert time.perf_counter() - start < 1.0
        assert web.counts["google"] == 1


async def test_rate_limit_holds(web: Web) -> None:
    config = configure(web.root)
    config.tools.text_search.rate_per_second, config.tools.text_search.burst = 20.0, 5
    async with LocalTools(config) as tools:
        start = time.perf_counter()
        assert all(r.ok for r in await asyncio.gather(*(tools.text_search(f"q{i}", "x") for i in range(25))))
        assert 0.95 < time.perf_counter() - start < 3.0


async def test_dead_provider_sees_few_requests_and_is_found_again(web: Web) -> None:
    port = web.port
    config = configure(web.root, breaker_failures=8, breaker_cooldown_seconds=0.3)
    config.tools.text_search.concurrency = 16
    async with LocalTools(config) as tools:
        web.rude["google"] = lambda request, n: http.Response(status=500)
        start = time.perf_counter()
        results = await asyncio.gather(*(tools.text_search(f"q{i}", "x") for i in range(200)))
        assert {r.failure for r in results} == {ToolFailure.UNAVAILABLE}
        assert web.counts["google"] <= 8 + 16 + 8
        assert time.perf_counter() - start < 5.0
        await web.stop()
        assert (await tools.text_search("refused", "x")).failure is ToolFailure.UNAVAILABLE
        web.rude.clear()
        web.port = port
        waiting = asyncio.create_task(tools.text_search("back", "x"))
        await asyncio.sleep(0.1)
        await web.start()
        await asyncio.sleep(0.4)
        assert (await tools.text_search("again", "x")).ok
        await waiting
        assert tools.stats()["text_search.breaker_opened"] >= 1


async def test_cache_file_outlives_the_tools(web: Web, tmp_path: Path) -> None:
    config = configure(web.root, cache=CacheConfig(dir=str(tmp_path)))
    async with LocalTools(config) as tools:
        first = (await tools.text_search("q", "x"), await tools.image_search(png(), None, "x"))
    before = web.counts.total()
    async with LocalTools(config) as tools:
        second = (await tools.text_search("q", "x"), await tools.image_search(png(), None, "x"))
    assert [r.hits for r in first] == [r.hits for r in second]
    assert web.counts.total() == before


async def test_no_key_in_logs_errors_or_results(web: Web, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TEST_SEARCH_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    config = configure(web.root, attempts=2, breaker_failures=2)
    for section in (config.tools.text_search, config.tools.image_search, config.tools.summariser):
        section.key_env = "TEST_SEARCH_KEY"
    echo = {
        1: lambda r: http.Response(status=500, text=f"failed: {r.url} {r.query_string} {r.query['api_key']}"),
        2: lambda r: http.HTTPFound(f"/x?{r.query_string}"),
    }
    web.rude["google"] = lambda request, n: (
        echo[n](request) if n in echo else http.json_response({"error": f"bad key {request.query['api_key']}"})
    )
    async with LocalTools(config) as tools:
        texts = [
            repr(tools),
            repr(await tools.text_search("a", "x")),
            repr(await tools.text_search("b", "x")),
            repr(await tools.image_search(png(), None, "x")),
        ]
        await web.stop()
        texts.append(repr(await tools.text_search("c", "x")))
        with pytest.raises(ToolsError) as caught:
            await tools.check()
        texts += [str(caught.value), caplog.text]
    assert web.queries[0]["api_key"] == KEY  # it does reach the service
    for text in texts:
        assert KEY not in text
        assert "s3cret" not in text


def test_missing_key_and_unknown_kind_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_SEARCH_KEY", raising=False)
    config = configure("http://127.0.0.1:1")
    config.tools.text_search.key_env = "TEST_SEARCH_KEY"
    with pytest.raises(ToolsError, match=r"tools\.text_search .* set the environment variable TEST_SEARCH_KEY"):
        LocalTools(config)
    config.tools.text_search = ProviderConfig(kind="bing")
    with pytest.raises(ToolsError, match=r"choose serpapi or serper or searxng"):
        LocalTools(config)
    config.tools.text_search = ProviderConfig(kind="searxng")
    with pytest.raises(ToolsError, match=r"tools\.text_search\.url"):
        LocalTools(config)


async def test_check_names_the_url_and_the_remedy(web: Web) -> None:
    config = configure(web.root)
    async with LocalTools(config) as tools:
        await tools.check()
    config.tools.reader.url = "http://127.0.0.1:9/reader/"
    async with LocalTools(config) as tools:
        with pytest.raises(ToolsError, match=r"tools\.reader: nothing answers at http://127.0.0.1:9/reader/ .* start the jina service"):
            await tools.check()


async def test_a_sample_without_url_and_no_host(web: Web) -> None:
    async with LocalTools(configure(web.root, image_host=ProviderConfig(kind="none"))) as tools:
        result = await tools.image_search(png(), None, "x")
        assert result.failure is ToolFailure.REJECTED
        assert "image_host" in result.detail


async def test_cached_call_is_quick(web: Web, tmp_path: Path) -> None:
    async with LocalTools(configure(web.root, cache=CacheConfig(dir=str(tmp_path)))) as tools:
        await tools.text_search("q", "x")
        start = time.perf_counter()
        for _ in range(100):
            assert (await tools.text_search("q", "x")).cached
        assert (time.perf_counter() - start) / 100 < 0.01
