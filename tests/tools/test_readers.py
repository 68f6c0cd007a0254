"""Page readers over HTTP: Jina Reader's answers by its open source (jina-ai/reader), and pages read in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web as http

from mmsr_ray.config import ProviderConfig
from mmsr_ray.tools.addresses import Reach
from mmsr_ray.tools.errors import AccountError, ProviderError, Redactor
from mmsr_ray.tools.http import Http
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.tools.providers.base import Page, Usage
from mmsr_ray.tools.providers.decoding import decode
from mmsr_ray.tools.providers.extraction import HTML_CHARS, THREADS, Extractor, main_text, slim
from mmsr_ray.tools.providers.readers import JinaReader, TrafilaturaReader
from mmsr_ray.types import ToolFailure
from tests.tools.web import KEY, Web, configure

PAGE_URL = "https://example.org/ä/tower?x=1&y=a b"
JAPANESE = "東京タワーは日本の東京都港区芝公園にある電波塔である。高さは333メートルで、1958年に完成した。" * 4
RUSSIAN = "Останкинская башня находится в Москве, её высота пятьсот сорок метров. Башня была построена в прошлом веке. " * 4


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Http]:
    async with Http(Redactor([KEY]), reach=Reach.parse(["127.0.0.1"])) as opened:
        yield opened


# ---------------------------------------------------------------------------------------------------- Jina


def jina(web: Web, client: Http, key: str = KEY, timeout: float = 5.0) -> JinaReader:
    return JinaReader(ProviderConfig(kind="jina", url=f"{web.root}/reader/", key_env="JINA_API_KEY", timeout_seconds=timeout), client, key)


def answer(**data: Any) -> dict[str, Any]:
    full = {
        "title": "Tower", "description": "About it", "url": "https://example.org/tower", "content": "The tower is 300 m high.",
        "publishedTime": "2026-01-01", "metadata": {"lang": "en"}, "external": {}, "usage": {"tokens": 1234},
    }  # fmt: skip
    return {"code": 200, "status": 20000, "data": full | data, "meta": {"usage": {"tokens": 1234}}}


def refusal(code: int, name: str, status: int, message: str) -> dict[str, Any]:
    return {"data": None, "code": code, "name": name, "status": status, "message": message, "readableMessage": f"{name}: {message}"}


async def test_jina_reads_a_page(web: Web, client: Http) -> None:
    seen: list[tuple[str, dict[str, str]]] = []
    web.rude["reader"] = lambda request, n: seen.append((request.raw_path, dict(request.headers))) or http.json_response(answer())
    assert await jina(web, client).read(PAGE_URL) == Page("Tower", "The tower is 300 m high.", Usage(output_tokens=1234))
    path, headers = seen[0]
    assert path == "/reader/https://example.org/%C3%A4/tower?x=1&y=a+b"
    assert headers["Accept"] == "application/json"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (headers["X-Timeout"], headers["X-Retain-Images"], headers["X-Retain-Links"]) == ("4", "none", "text")
    await jina(web, client, key="", timeout=60.0).read(PAGE_URL)
    assert "Authorization" not in seen[1][1]
    assert "X-Timeout" not in seen[1][1]  # 20 s and more would make it wait for the last byte of each page


@pytest.mark.parametrize("usage", [None, {}, {"tokens": "7"}, {"tokens": -3}, {"tokens": None}, 5])
async def test_jina_without_usage(web: Web, client: Http, usage: Any) -> None:
    web.rude["reader"] = lambda request, n: http.json_response(answer(usage=usage))
    assert (await jina(web, client).read(PAGE_URL)).usage == Usage()


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (400, refusal(400, "ParamValidationError", 40001, "Invalid URL"), ToolFailure.NO_RESULTS),
        (403, refusal(403, "OperationNotAllowedError", 40303, "Consecutive error detected on URL"), ToolFailure.NO_RESULTS),
        (404, refusal(404, "ResourceNotFoundError", 40401, "gone"), ToolFailure.NO_RESULTS),
        (422, refusal(422, "AssertionFailureError", 42206, "Failed to goto https://example.org"), ToolFailure.NO_RESULTS),
        (451, refusal(451, "SecurityCompromiseError", 45102, "Anonymous access to domain blocked"), ToolFailure.NO_RESULTS),
        (503, refusal(503, "ServiceNodeResourceDrainError", 50303, "at capacity"), ToolFailure.UNAVAILABLE),
        (524, {}, ToolFailure.UNAVAILABLE),
        (200, answer(warning="Target URL returned error 404: Not Found"), ToolFailure.NO_RESULTS),
        (200, answer(content=" \n "), ToolFailure.NO_RESULTS),
        (200, answer(content=None), ToolFailure.BAD_RESPONSE),
        (200, {"code": 200, "data": None}, ToolFailure.BAD_RESPONSE),
    ],
)
async def test_jina_says_no(web: Web, client: Http, status: int, body: Any, failure: ToolFailure) -> None:
    web.rude["reader"] = lambda request, n: http.json_response(body, status=status)
    with pytest.raises(ProviderError) as caught:
        await jina(web, client).read(PAGE_URL)
    assert (caught.value.failure, isinstance(caught.value, AccountError)) == (failure, False)


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, refusal(401, "AuthenticationFailedError", 40103, "Invalid API key"), "correct JINA_API_KEY"),
        (
            402,
            refusal(402, "InsufficientBalanceError", 40203, "Account balance not enough to run this query, please recharge."),
            "top it up",
        ),
        (403, {"message": "Forbidden"}, "correct JINA_API_KEY"),
    ],
)
async def test_jina_refuses_the_account(web: Web, client: Http, status: int, body: Any, says: str) -> None:
    web.rude["reader"] = lambda request, n: http.json_response(body, status=status)
    with pytest.raises(AccountError, match=says) as caught:
        await jina(web, client).read(PAGE_URL)
    assert KEY not in str(caught.value)
    assert not caught.value.retry


async def test_jina_limits_the_rate(web: Web, client: Http) -> None:
    body = refusal(429, "RateLimitTriggeredError", 42903, "Per IP rate limit exceeded")
    web.rude["reader"] = lambda request, n: http.json_response(body, status=429, headers={"Retry-After": "7"})
    with pytest.raises(ProviderError) as caught:
        await jina(web, client).read(PAGE_URL)
    assert (caught.value.failure, caught.value.retry_after) == (ToolFailure.RATE_LIMITED, 7.0)


# ---------------------------------------------------------------------------------------------------- pages


def page(text: str, head: str = "") -> str:
    return f"<!DOCTYPE html><html><head>{head}<title>T</title></head><body><nav>menu</nav><article><p>{text}</p></article></body></html>"


def trafilatura(client: Http, timeout: float = 5.0) -> TrafilaturaReader:
    return TrafilaturaReader(ProviderConfig(kind="trafilatura", timeout_seconds=timeout), client, "")


ENCODINGS = [
    ("cp932", "Shift_JIS", "text/html", JAPANESE),
    ("cp932", "", "text/html", JAPANESE),
    ("cp932", "utf-8", "text/html; charset=utf-8", JAPANESE),
    ("euc-jp", "", "text/html; charset=EUC-JP", JAPANESE),
    ("iso-2022-jp", "iso-2022-jp", "text/html", JAPANESE),
    ("utf-8", "shift_jis", "text/html; charset=iso-8859-1", JAPANESE),
    ("utf-16", "utf-16", "text/html", JAPANESE),
    ("utf-16-le", "", "text/html; charset=utf-16le", JAPANESE),
    ("windows-1251", "windows-1251", "text/html", RUSSIAN),
    ("windows-1251", "", "text/html", RUSSIAN),
    ("windows-1251", "windows-1251", "text/html; charset=ISO-8859-1", RUSSIAN),
    ("koi8-r", "utf-8", "application/xhtml+xml", RUSSIAN),
]


@pytest.mark.parametrize(("codec", "meta", "kind", "text"), ENCODINGS)
async def test_pages_in_any_encoding(web: Web, client: Http, codec: str, meta: str, kind: str, text: str) -> None:
    head = f'<meta http-equiv="Content-Type" content="text/html; charset={meta}">' if meta else ""
    body = page(text, head).encode(codec)
    web.rude["wiki"] = lambda request, n: http.Response(body=body, headers={"Content-Type": kind})
    found = await trafilatura(client).read(f"{web.root}/wiki/1")
    assert found.text.strip() == text.strip()
    assert found.title == "T"


async def test_plain_text_is_read_as_it_is(web: Web, client: Http) -> None:
    web.rude["wiki"] = lambda request, n: http.Response(
        body="塔 < 333 m\n".encode("cp932"), headers={"Content-Type": "text/plain; charset=sjis"}
    )
    assert (await trafilatura(client).read(f"{web.root}/wiki/1")).text == "塔 < 333 m\n"


def test_xhtml_with_a_declaration() -> None:
    body = f'<?xml version="1.0" encoding="Shift_JIS"?>\n{page(JAPANESE)}'.encode("cp932")
    assert main_text(body, "", "https://example.org/").text == JAPANESE


@pytest.mark.parametrize(
    "label", ["punycode", "unicode_escape", "zlib", "idna", "utf-7", "iso-8859-99", "a" * 10_000, "\x00", "utf-8\r\nX: y"]
)
def test_odd_charsets_are_not_believed(label: str) -> None:
    assert decode("Grüße".encode(), label) == "Grüße"
    assert decode(b"\xff\xfe", label) == ""
    assert isinstance(decode(b"\x81\xff" * 1_000, label), str)
    assert isinstance(decode(f'<meta charset="{label}">'.encode() + b"\x81\xff" * 10, ""), str)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"%PDF-1.7 " + bytes(1_000), "application/pdf"),
        (page(RUSSIAN).encode(), "application/octet-stream"),
        (b'{"text": "json"}', "application/json"),
        (b"<html><head><title>T</title></head><body><div></div></body></html>", "text/html"),
        (b"", "text/html"),
        (b"\x00" * 10_000, "text/html"),
        (b"<html><body>" + b"<script>var x = 'The tower is 300 m high and was built in 1805.';</script>" * 3_000, "text/html"),
        (b"   \n", "text/plain"),
    ],
)
async def test_what_is_no_page_to_read(web: Web, client: Http, body: bytes, kind: str) -> None:
    web.rude["wiki"] = lambda request, n: http.Response(body=body, headers={"Content-Type": kind})
    with pytest.raises(ProviderError) as caught:
        await trafilatura(client).read(f"{web.root}/wiki/1")
    assert caught.value.failure is ToolFailure.NO_RESULTS


async def test_a_page_of_200_megabytes_is_left_alone(web: Web, client: Http) -> None:
    sent = 0

    async def endless(request: http.Request) -> http.StreamResponse:
        nonlocal sent
        response = http.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        for _ in range(3_200):
            await response.write(b"<p>text</p>" * 6_000)
            sent += 66_000
        return response

    app = http.Application()
    app.router.add_get("/big", endless)
    runner = http.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    await http.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        with pytest.raises(ProviderError) as caught:
            await trafilatura(client).read(f"http://127.0.0.1:{runner.addresses[0][1]}/big")
    finally:
        await runner.cleanup()
    assert caught.value.failure is ToolFailure.NO_RESULTS
    assert sent < 20_000_000


@pytest.mark.parametrize("status", [401, 403, 404, 410, 429, 500, 503])
async def test_a_page_that_fails_is_that_pages_affair(web: Web, client: Http, status: int) -> None:
    web.rude["wiki"] = lambda request, n: http.Response(status=status)
    with pytest.raises(ProviderError) as caught:
        await trafilatura(client).read(f"{web.root}/wiki/1")
    assert caught.value.failure is ToolFailure.NO_RESULTS


# ---------------------------------------------------------------------------------------------------- extraction


HOSTILE = {
    "nested": "<div>" * 1_000_000,
    "flat": "<div>hello</div>" * 320_000,
    "crossed": "<p><b>x " * 600_000,
    "tables": "<table><tr><td>" * 330_000,
    "comments": "<!--" + "<script>" * 600_000,
    "open scripts": "<script " * 600_000,
    "attributes": "<div " + " ".join(f'a{i}="x"' for i in range(300_000)) + ">",
    "closings": "</script>" * 500_000,
}


def test_hostile_markup_is_cut_in_time() -> None:
    for name, html in HOSTILE.items():
        start = time.perf_counter()
        assert len(slim(html, HTML_CHARS)) <= HTML_CHARS, name
        assert time.perf_counter() - start < 1.0, name


def test_a_long_page_loses_its_scripts_first() -> None:
    bulk = "<SCRIPT>var x = 'İ';</SCRIPT ><style>p {}</style><!-- c -->" * 10_000
    assert slim(f"<body>{bulk}<p>text</p>", HTML_CHARS) == "<body><p>text</p>"
    assert slim("<script>short</script>", HTML_CHARS) == "<script>short</script>"
    assert main_text(f"<html><body>{bulk}<article><p>{RUSSIAN}</p></article>".encode(), "", "https://e.org").text.strip() == RUSSIAN.strip()


async def test_a_page_that_takes_too_long_is_given_up_and_threads_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0

    def slow(html: bytes, charset: str, url: str) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.4)
        running -= 1
        return main_text(html, charset, url)

    monkeypatch.setattr("mmsr_ray.tools.providers.extraction.main_text", slow)
    extractor = Extractor()
    body = page(RUSSIAN).encode()
    start = time.perf_counter()
    late = await asyncio.gather(*(extractor.extract(body, "", "https://e.org/", 0.1) for _ in range(THREADS)), return_exceptions=True)
    assert time.perf_counter() - start < 0.35
    assert all(isinstance(e, ProviderError) and e.failure is ToolFailure.NO_RESULTS for e in late)
    # their threads still run: the next waits for one, and its own seconds count from then on
    assert (await extractor.extract(body, "", "https://e.org/", 5.0)).text.strip() == RUSSIAN.strip()
    assert most == THREADS


async def test_a_hostile_page_does_not_hold_up_the_search(web: Web) -> None:
    hostile = f"<html><body>{HOSTILE['crossed']}"
    web.rude["wiki"] = lambda request, n: http.Response(text=hostile, content_type="text/html") if request.path[-1] == "0" else None
    config = configure(
        web.root, reader=ProviderConfig(kind="trafilatura", timeout_seconds=4.0), summariser=ProviderConfig(kind="extractive")
    )
    async with LocalTools(config) as tools:
        result = await tools.text_search("q", "When was it built in 1805?")
    assert result.ok
    assert len(result.hits) == 5
    assert set("1234") <= {h.url[-1] for h in result.hits}  # whether the hostile one is there depends on the machine's speed
