"""Uploads to a bucket: a real S3 client over HTTP against moto's server, and the failures that a store can give."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from aiohttp import web as http
from moto.server import ThreadedMotoServer

from mmsr_ray.config import CacheConfig, Config, ProviderConfig, S3Config
from mmsr_ray.tools.errors import AccountError, ProviderError, Redactor, ToolsError
from mmsr_ray.tools.http import Http
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.tools.providers import read_keys
from mmsr_ray.tools.providers.base import Keys
from mmsr_ray.tools.providers.s3 import S3Host
from mmsr_ray.types import ToolFailure
from tests.tools.web import Web, configure, png

ACCESS, SECRET = "AKIATESTTESTTESTTEST", "moto/secret+key=of0characters"
SHA = hashlib.sha256(png()).hexdigest()
REFUSAL = '<?xml version="1.0"?><Error><Code>{}</Code><Message>no</Message><RequestId>1</RequestId></Error>'


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """Address of a server with the bucket `pictures`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    root = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=root, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET, region_name="us-east-1")
    client.create_bucket(Bucket="pictures")
    yield root
    server.stop()


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_S3_ACCESS", ACCESS)
    monkeypatch.setenv("TEST_S3_SECRET", SECRET)


def s3(**fields: object) -> S3Config:
    config = S3Config(bucket="pictures", access_key_env="TEST_S3_ACCESS", secret_key_env="TEST_S3_SECRET")
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def section(root: str, timeout: float = 5.0) -> ProviderConfig:
    return ProviderConfig(kind="s3", url=root, rate_per_second=0, timeout_seconds=timeout)


def host(root: str, timeout: float = 5.0, **fields: object) -> S3Host:
    keys = Keys({"s3.access_key": ACCESS, "s3.secret_key": SECRET})
    return S3Host(section(root, timeout), Http(Redactor(keys.secrets())), s3(**fields), keys)


def configured(web: Web, store: str, **tools: object) -> Config:
    return configure(web.root, image_host=section(store), s3=s3(), **tools)


def opened(url: str) -> tuple[bytes, str]:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return reply.read(), reply.headers["Content-Type"]


def signed_entries(folder: Path) -> list[tuple[str, float]]:
    """Layer and time of expiry of what the cache keeps of signed addresses."""
    (file,) = folder.glob("*.sqlite")
    with sqlite3.connect(file) as db:
        return db.execute("select layer, expires from entries where instr(value, 'X-Amz-Signature')").fetchall()


async def test_a_signed_address_opens_the_picture(store: str) -> None:
    url = await host(store, expires_seconds=120).upload(png())
    assert urlsplit(url).path == f"/pictures/mmsr/{SHA}"
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["120"]
    assert opened(url) == (png(), "image/png")


async def test_a_public_bucket_needs_no_signature(store: str) -> None:
    public = host(store, public_url=f"{store}/pictures/", prefix="a b")
    url = await public.upload(png(7))
    assert url == f"{store}/pictures/a%20b/{hashlib.sha256(png(7)).hexdigest()}"
    assert public.lasts is None
    assert await public.upload(png(7)) == url


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"\xff\xd8\xff\xe0 cut"])
async def test_only_pictures_are_put(store: str, data: bytes) -> None:
    with pytest.raises(ProviderError, match="no picture") as caught:
        await host(store).upload(data)
    assert (caught.value.failure, caught.value.retry) == (ToolFailure.REJECTED, False)


async def test_no_such_bucket(store: str) -> None:
    with pytest.raises(AccountError, match=r"NoSuchBucket: there is no bucket 'nowhere'.*tools\.s3\.bucket"):
        await host(store, bucket="nowhere").upload(png())
    assert "nowhere" in await host(store, bucket="nowhere").probe(5.0)
    assert await host(store).probe(5.0) == ""


@pytest.mark.parametrize(
    ("status", "code", "failure", "retry"),
    [
        (403, "InvalidAccessKeyId", ToolFailure.REJECTED, False),
        (403, "AccessDenied", ToolFailure.REJECTED, False),
        (400, "EntityTooLarge", ToolFailure.REJECTED, False),
        (503, "SlowDown", ToolFailure.RATE_LIMITED, True),
        (429, "TooManyRequests", ToolFailure.RATE_LIMITED, True),
        (500, "InternalError", ToolFailure.UNAVAILABLE, True),
        (502, "", ToolFailure.UNAVAILABLE, True),
    ],
)
async def test_refusals_are_typed_and_asked_once(web: Web, status: int, code: str, failure: ToolFailure, retry: bool) -> None:
    body = REFUSAL.format(code) if code else "<html>garbage"
    web.rude["s3"] = lambda request, n: http.Response(status=status, text=body, content_type="application/xml")
    with pytest.raises(ProviderError) as caught:
        await host(f"{web.root}/s3").upload(png())
    assert (caught.value.failure, caught.value.retry, web.counts["s3"]) == (failure, retry, 1)
    if code == "AccessDenied":
        assert "correct TEST_S3_ACCESS and TEST_S3_SECRET" in str(caught.value)


async def test_nobody_there_and_nobody_answering(web: Web) -> None:
    with pytest.raises(ProviderError) as caught:
        await host("http://127.0.0.1:9").upload(png())
    assert caught.value.failure is ToolFailure.UNAVAILABLE
    web.delay["s3"] = 30.0
    impatient, start = host(f"{web.root}/s3", timeout=0.3), time.perf_counter()
    with pytest.raises(ProviderError) as caught:
        await impatient.upload(png())
    assert caught.value.failure is ToolFailure.TIMEOUT
    assert "does not answer" in await impatient.probe(0.1)
    assert time.perf_counter() - start < 10


def test_keys_come_from_the_named_variables(monkeypatch: pytest.MonkeyPatch, store: str, web: Web) -> None:
    config = configured(web, store)
    assert {ACCESS, SECRET} <= set(read_keys(config.tools).secrets())
    monkeypatch.delenv("TEST_S3_SECRET")
    with pytest.raises(ToolsError, match=r"tools\.image_host \(s3\) needs its keys: set the environment variable TEST_S3_SECRET"):
        LocalTools(config)
    for field, value in (("bucket", ""), ("expires_seconds", 5), ("expires_seconds", 10**6)):
        config.tools.s3 = s3(**{field: value})
        with pytest.raises(ToolsError, match=rf"tools\.s3\.{field}"):
            LocalTools(config)
    with pytest.raises(ToolsError, match=r"tools\.image_host\.url"):
        host("not a url")


async def test_a_search_by_a_signed_address_leaves_no_trace_of_it(
    web: Web, store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    web.rude["google_lens"] = lambda request, n: (
        http.Response(status=500, text=f"cannot fetch {request.query['url']} {request.query_string}") if n == 1 else None
    )
    config = configured(web, store, cache=CacheConfig(dir=str(tmp_path)), attempts=1)
    async with LocalTools(config) as tools:
        failed = await tools.image_search(png(), None, "q")
        found = await tools.image_search(png(), None, "q")
    assert failed.failure is ToolFailure.UNAVAILABLE
    assert found.ok
    first, second = (query["url"] for query in web.queries)
    assert first == second  # kept while it works
    assert opened(first)[0] == png()
    signature = parse_qs(urlsplit(first).query)["X-Amz-Signature"][0]
    logged = "\n".join(record.getMessage() for record in caplog.records if record.name != "werkzeug")  # the test's own server
    for text in (failed.detail, repr(found), logged):
        assert signature not in text
        assert ACCESS not in text
        assert SECRET not in text
    assert "cannot fetch" in failed.detail
    kept = signed_entries(tmp_path)
    assert [layer.rpartition("/")[2] for layer, _ in kept] == ["upload"]
    assert 0 < kept[0][1] - time.time() < config.tools.s3.expires_seconds
