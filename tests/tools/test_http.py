"""The HTTP client against servers that lie, dawdle, flood and explode."""

from __future__ import annotations

import asyncio
import random
import time
import tracemalloc
from collections.abc import AsyncIterator
from encodings.aliases import aliases

import pytest
import pytest_asyncio

from mmsr_ray.tools.addresses import Reach
from mmsr_ray.tools.errors import ProviderError, Redactor
from mmsr_ray.tools.http import JSON_BYTES, PAGE_BYTES, Http, Reply
from mmsr_ray.types import ToolFailure
from tests.tools.hostile import Answer, Hostile, bomb, endless, packed, reply

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
LISTED = Reach.parse(["127.0.0.1"])


@pytest_asyncio.fixture
async def hostile() -> AsyncIterator[Hostile]:
    server = Hostile()
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Http]:
    async with Http(Redactor(), reach=LISTED) as made:
        yield made


async def failed(client: Http, url: str, timeout: float = 5.0, limit: int = PAGE_BYTES, types: tuple[str, ...] = ()) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await client.fetch(url, timeout=timeout, limit=limit, types=types)
    return caught.value


async def test_a_declared_body_over_the_limit_is_not_read(hostile: Hostile, client: Http) -> None:
    sent = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(HEAD + b"Content-Length: 200000000\r\n\r\n")
        for _ in range(200):
            writer.write(bytes(1_000_000))
            await writer.drain()
            sent += 1

    hostile.answers["/big"] = flood
    error = await failed(client, f"{hostile.root}/big")
    assert (error.failure, error.retry) == (ToolFailure.NO_RESULTS, False)
    assert "200000000" in error.detail
    await asyncio.sleep(0.2)
    assert sent < 20  # what the buffers of the two sockets hold


async def test_an_endless_body_is_cut(hostile: Hostile, client: Http) -> None:
    hostile.answers["/plain"] = endless(HEAD + b"\r\n", b"x" * 100_000)
    hostile.answers["/chunked"] = endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1_000)
    start = time.perf_counter()
    assert "over the limit" in (await failed(client, f"{hostile.root}/plain")).detail
    assert "over the limit" in (await failed(client, f"{hostile.root}/chunked", limit=100_000)).detail
    assert time.perf_counter() - start < 5.0


@pytest.mark.parametrize("path", ["/gzip", "/deflate", "/chunked"])
async def test_a_decompression_bomb_costs_little(hostile: Hostile, client: Http, path: str) -> None:
    body = bomb(200)
    assert len(body) < 300_000
    hostile.answers["/gzip"] = reply(body, Content_Encoding="gzip")
    hostile.answers["/deflate"] = reply(body[10:-8], Content_Encoding="deflate")
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 999]), body[i : i + 999]) for i in range(0, len(body), 999))
    hostile.answers["/chunked"] = HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"
    tracemalloc.start()
    start = time.perf_counter()
    error = await failed(client, hostile.root + path)
    took, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.failure is ToolFailure.NO_RESULTS
    assert peak < 4 * PAGE_BYTES
    assert took < 3.0


async def test_a_bomb_within_the_limit_is_a_page(hostile: Hostile, client: Http) -> None:
    hostile.answers["/page"] = reply(bomb(4), Content_Encoding="gzip")
    assert len((await client.fetch(f"{hostile.root}/page", timeout=5.0, limit=PAGE_BYTES)).body) == 4_000_000
    assert hostile.requests[0][1]["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip", "deflate"])
async def test_a_body_that_does_not_decompress(hostile: Hostile, client: Http, encoding: str) -> None:
    hostile.answers["/page"] = reply(b"\x1f\x8b\xff" + random.Random(0).randbytes(5_000), Content_Encoding=encoding)
    assert (await failed(client, f"{hostile.root}/page")).failure in (ToolFailure.NO_RESULTS, ToolFailure.UNAVAILABLE)


async def test_a_slow_body_ends_by_the_timeout(hostile: Hostile, client: Http) -> None:
    hostile.answers["/body"] = endless(HEAD + b"Content-Length: 1000\r\n\r\n", b"x", pause=0.1)
    hostile.answers["/head"] = endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", pause=0.1)
    hostile.answers["/silent"] = endless(b"", b"", pause=0.1)
    hostile.answers["/far"] = reply(b"", status="302 Found", Location="/far2")
    hostile.answers["/far2"] = hostile.answers["/silent"]
    start = time.perf_counter()
    errors = await asyncio.gather(*(failed(client, hostile.root + path, timeout=0.5) for path in ("/body", "/head", "/silent", "/far")))
    assert {error.failure for error in errors} == {ToolFailure.TIMEOUT}
    assert time.perf_counter() - start < 1.5


GARBAGE: dict[str, Answer] = {
    "0.9": b"<html>no status line</html>",
    "nothing": b"",
    "a lone line": b"HTTP/1.1 200 OK\r\n",
    "nulls": bytes(1_000),
    "no colon": b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\nx",
    "null in header": b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\nx",
    "long header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\nx",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\nx",
    "endless header": endless(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 10_000),
    "status": b"HTTP/1.1 999999 OK\r\n\r\n",
    "negative length": HEAD + b"Content-Length: -5\r\n\r\nx",
    "word for length": HEAD + b"Content-Length: ten\r\n\r\nx",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nxxxxxx",
    "short body": HEAD + b"Content-Length: 5000\r\n\r\nx",
    "bad chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nxxxx",
    "huge chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\nxxxx",
    "cut chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n10\r\nxxxx",
    "switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 10,
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_is_a_typed_failure(hostile: Hostile, client: Http, name: str) -> None:
    hostile.answers["/x"] = GARBAGE[name]
    start = time.perf_counter()
    error = await failed(client, f"{hostile.root}/x", timeout=2.0)
    assert error.failure in (ToolFailure.NO_RESULTS, ToolFailure.UNAVAILABLE, ToolFailure.TIMEOUT)
    with pytest.raises(ProviderError):
        await client.json("GET", f"{hostile.root}/x", timeout=2.0)
    assert time.perf_counter() - start < 5.0
    assert len(error.detail) < 1_000


async def test_a_body_longer_than_declared_is_cut_and_the_connection_not_reused(hostile: Hostile, client: Http) -> None:
    hostile.answers["/long"] = HEAD + b"Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    for _ in range(3):
        assert (await client.fetch(f"{hostile.root}/long", timeout=2.0, limit=100)).body == b"ok"
    assert hostile.connections == 3


async def test_random_answers_are_typed_failures_or_replies(hostile: Hostile, client: Http) -> None:
    rng = random.Random(1)
    sound = reply(packed(b"<html>" + bytes(300)), Content_Encoding="gzip", Set_Cookie="a=b")
    for _ in range(150):
        damaged = bytearray(sound)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(damaged))
            damaged[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        hostile.answers["/x"] = bytes(damaged)
        try:
            text = (await client.fetch(f"{hostile.root}/x", timeout=2.0, limit=1_000)).text
        except ProviderError as error:
            text = error.detail
        assert isinstance(text, str)


async def test_content_types(hostile: Hostile, client: Http) -> None:
    hostile.answers["/png"] = reply(b"x", "image/png")
    hostile.answers["/none"] = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    hostile.answers["/html"] = endless(HEAD + b"\r\n", b"x")
    hostile.answers["/odd"] = reply(b"x", 'image/png; charset="\\";;; =;=,\x7f')
    types = ("image/", "application/octet-stream")
    for path in ("/png", "/none"):
        assert (await client.fetch(hostile.root + path, timeout=2.0, limit=10, types=types)).body == b"x"
    error = await failed(client, f"{hostile.root}/html", types=types)
    assert (error.failure, "text/html is of no use" in error.detail) == (ToolFailure.NO_RESULTS, True)
    assert (await client.fetch(f"{hostile.root}/odd", timeout=2.0, limit=10)).text == "x"


async def test_whose_fault_a_status_is(hostile: Hostile, client: Http) -> None:
    expected = {"404 Not Found": ToolFailure.NO_RESULTS, "403 Forbidden": ToolFailure.NO_RESULTS, "500 Oh": ToolFailure.UNAVAILABLE}
    for status, failure in (expected | {"429 Slow": ToolFailure.RATE_LIMITED, "304 Same": ToolFailure.NO_RESULTS}).items():
        hostile.answers["/x"] = reply(b"", status=status)
        error = await failed(client, f"{hostile.root}/x")
        assert (error.failure, error.status) == (failure, int(status[:3]))


def test_any_charset_decodes_quickly() -> None:
    body = ("<p>é</p>" * 10_000).encode()
    for charset in sorted({*aliases, *aliases.values(), "x" * 1_000, "a\0b", "../x", "", "undefined", "idna"}):
        start = time.perf_counter()
        assert isinstance(Reply(body, "text/html", charset).text, str)
        assert time.perf_counter() - start < 0.5, charset
    assert Reply("é".encode("latin-1"), "text/html", "latin-1").text == "é"


JSON = {
    "deep": b'{"a":' * 100_000,
    "deep and closed": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "not a number": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "overflow": b'{"a": 1e999}',
    "many digits": b'{"a": ' + b"9" * 1_000_000 + b"}",
    "utf-16 that ends early": b"\xff\xfe{",
    "a list": b"[]",
    "empty": b"",
    "too long": b'{"a": "' + b"x" * JSON_BYTES + b'"}',
}


@pytest.mark.parametrize("name", JSON)
async def test_json_of_a_service(hostile: Hostile, client: Http, name: str) -> None:
    hostile.answers["/api"] = reply(JSON[name], "application/json")
    start = time.perf_counter()
    with pytest.raises(ProviderError) as caught:
        await client.json("GET", f"{hostile.root}/api", timeout=5.0)
    assert caught.value.failure is ToolFailure.BAD_RESPONSE
    assert time.perf_counter() - start < 1.0


async def test_the_last_of_two_equal_keys_counts(hostile: Hostile, client: Http) -> None:
    hostile.answers["/api"] = reply(b'{"a": 1, "a": 2.5}', "text/plain")
    assert await client.json("GET", f"{hostile.root}/api", timeout=5.0) == {"a": 2.5}
