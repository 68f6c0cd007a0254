"""The open web leads to public addresses only: by literal, by name, by redirect, by rebinding, behind a proxy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from yarl import URL

from mmsr_ray.config import Config, ConfigError, ToolsConfig, load
from mmsr_ray.tools.addresses import Reach
from mmsr_ray.tools.errors import ProviderError, Redactor, ToolsError
from mmsr_ray.tools.http import Http, open_http
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.types import ToolFailure
from tests.tools.hostile import Hostile, moved, reply
from tests.tools.web import Web, configure

LISTED = ["127.0.0.1"]
PAGE = reply(b"<html>here</html>")


@pytest_asyncio.fixture
async def outside() -> AsyncIterator[Hostile]:
    """Stands for the open web: its address is listed."""
    server = Hostile()
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture
async def inside(outside: Hostile) -> AsyncIterator[Hostile]:
    """Stands for a service of one's own network: same port, an address that is not listed."""
    server = Hostile("127.0.0.2", outside.port)
    server.answers["/secret"] = PAGE
    await server.start()
    yield server
    await server.stop()


async def fetch(client: Http, url: str) -> bytes:
    return (await client.fetch(url, timeout=3.0, limit=100_000)).body


async def refused(client: Http, url: str) -> str:
    with pytest.raises(ProviderError) as caught:
        await fetch(client, url)
    assert caught.value.failure is ToolFailure.NO_RESULTS, caught.value.detail
    assert not caught.value.retry
    return caught.value.detail


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "100.127.255.255", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.0.1", "192.0.2.1",
        "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12::1", "ff02::1",
        "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "3fff::1", "100::1", "5f00::1", "", "nonsense",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not Reach().allows(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450:4001::200e"])
def test_public_addresses(address: str) -> None:
    assert Reach().allows(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.1/", "http://0x7f.1/", "http://0177.0.0.1/", "http://2130706433/", "http://0/", "http://127.0.0.1./", "http://１２７.0.0.1/",
        "http://[::ffff:127.0.0.1]/", "http://[::1]/", "http://[fe80::1%25eth0]/", "http://localhost/", "http://a.localhost./", "http://printer/",
        "http://db.internal/", "http://nas.local/", "http://user@example.org/", "http://u:p@example.org/", "http://example.org:22/",
        "http://example.org:25/", "ftp://example.org/", "file:///etc/passwd", "//example.org/", "http:///x", "gopher://example.org/",
    ],
)  # fmt: skip
async def test_urls_refused_by_their_text(url: str) -> None:
    async with Http(Redactor()) as client:
        assert client.refusal(url)
        await refused(client, url)


def test_urls_not_refused_by_their_text() -> None:
    client = Http(Redactor())
    for url in (
        "http://example.org/",
        "https://example.org:8443/x",
        "http://8.8.8.8:8080/",
        "http://[2606:4700::1111]/",
        "https://münchen.de/",
    ):
        assert client.refusal(url) == "", url


def test_private_hosts_are_names_addresses_and_networks() -> None:
    reach = Reach.parse(["10.0.0.0/8", "fd00::/8", "192.168.0.7", "Wiki.Corp.example.", "searx"])
    assert reach.allows("10.200.0.1") and reach.allows("fd00::5") and reach.allows("192.168.0.7")
    assert not reach.allows("192.168.0.8")
    assert reach.lists(URL("http://wiki.corp.example:81/")) and reach.refusal(URL("http://searx:25/")) == ""
    assert reach.refusal(URL("http://other.corp.internal/"))
    for bad in ("http://x", "x:80", "*.x.org", "10.0.0.0/99", "127.1", "", "a b"):
        with pytest.raises(ConfigError, match=r"tools\.private_hosts: .* write it without scheme"):
            load(None, ["model.path=m", "data.train=a", "data.test=b", f"tools.private_hosts=['{bad}']"])


async def test_a_listed_address_is_reached_and_no_other(outside: Hostile, inside: Hostile) -> None:
    outside.answers["/page"] = PAGE
    async with Http(Redactor(), reach=Reach.parse(LISTED)) as client:
        assert await fetch(client, f"{outside.root}/page") == b"<html>here</html>"
        await refused(client, f"{inside.root}/secret")
    async with Http(Redactor()) as client:
        await refused(client, f"{outside.root}/page")
    assert (len(outside.requests), inside.connections) == (1, 0)


async def test_the_socket_itself_is_guarded(outside: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the check of URLs to miss a spelling, the connection would still not be made."""
    monkeypatch.setattr(Reach, "refusal", lambda self, url: "")
    async with Http(Redactor()) as client:
        for host in ("127.0.0.1", "[::ffff:127.0.0.1]", "localhost"):
            assert "not a public address" in await refused(client, f"http://{host}:{outside.port}/")
    assert outside.connections == 0


def names(monkeypatch: pytest.MonkeyPatch, **addresses: list[str]) -> list[str]:
    """A resolver with these names (_ for .); every look-up of one takes its next address list; returns the look-ups."""
    real, asked = socket.getaddrinfo, list[str]()

    def getaddrinfo(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        found = addresses.get(str(host).replace(".", "_"))
        if found is None:
            return real(host, port, *rest, **named)
        asked.append(host)
        now = found[min(len(asked), len(found)) - 1].split()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in now]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


async def test_a_name_is_judged_by_what_it_is_connected_to(outside: Hostile, inside: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    outside.answers["/secret"] = PAGE
    names(monkeypatch, evil_example=["127.0.0.2"], both_example=["127.0.0.2 127.0.0.1"], wiki_corp=["127.0.0.2"])
    async with Http(Redactor(), reach=Reach.parse([*LISTED, "wiki.corp"])) as client:
        assert "not a public address" in await refused(client, f"http://evil.example:{outside.port}/secret")
        await fetch(client, f"http://both.example:{outside.port}/secret")
        assert (inside.connections, len(outside.requests)) == (0, 1)
        await fetch(client, f"http://wiki.corp:{outside.port}/secret")  # its name is listed
        assert len(inside.requests) == 1


async def test_rebinding(outside: Hostile, inside: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    outside.answers |= {"/secret": PAGE, "/again": moved("/secret")}
    asked = names(monkeypatch, flip_example=["127.0.0.1", "127.0.0.2"])
    for path in ("/again", "/secret"):
        async with Http(Redactor(), reach=Reach.parse(LISTED)) as client:
            if path == "/again":
                assert await fetch(client, f"http://flip.example:{outside.port}/again") == b"<html>here</html>"
            else:
                await refused(client, f"http://flip.example:{outside.port}/secret")
    assert (len(asked), inside.connections) == (2, 0)


async def test_every_redirect_is_checked(outside: Hostile, inside: Hostile) -> None:
    targets = {
        "/a": f"{inside.root}/secret",
        "/b": f"//127.0.0.2:{inside.port}/secret",
        "/c": "http://169.254.169.254/latest/meta-data/",
        "/d": f"http://0x7f.2:{inside.port}/secret",
        "/e": "file:///etc/passwd",
        "/f": f"http://127.0.0.1@127.0.0.2:{inside.port}/secret",
        "/g": "http://[::ffff:127.0.0.2]/",
        "/h": "http://[::1",
        "/i": "x" * 5_000,
        "/j": "",
    }
    outside.answers |= {path: moved(to) for path, to in targets.items()} | {"/fine": moved("/page", "308 Permanent"), "/page": PAGE}
    async with Http(Redactor(), reach=Reach.parse(LISTED)) as client:
        for path in targets:
            await refused(client, outside.root + path)
        assert await fetch(client, f"{outside.root}/fine#part") == b"<html>here</html>"
    assert inside.connections == 0


async def test_redirects_end_and_carry_nothing(outside: Hostile) -> None:
    outside.answers |= {"/loop": moved("/loop2"), "/loop2": moved("/loop"), "/page": PAGE}
    outside.answers |= {f"/{i}": moved(f"/{i + 1}") for i in range(10)} | {"/5": PAGE}
    async with Http(Redactor(), reach=Reach.parse(LISTED)) as client:
        assert "in a circle" in await refused(client, f"{outside.root}/loop")
        assert await fetch(client, f"{outside.root}/0") == b"<html>here</html>"
        outside.answers["/5"] = moved("/6")
        assert "more than 5" in await refused(client, f"{outside.root}/0")
    assert not {name for _, headers in outside.requests for name in headers} & {"cookie", "authorization", "referer", "x-api-key"}


async def test_a_service_is_asked_without_redirects_and_may_be_private(outside: Hostile) -> None:
    outside.answers |= {"/api": reply(b'{"a": 1}', "application/json"), "/moved": moved("/api")}
    async with Http(Redactor()) as client:
        assert await client.json("GET", f"{outside.root}/api", timeout=3.0) == {"a": 1}
        with pytest.raises(ProviderError, match="HTTP 302"):
            await client.json("GET", f"{outside.root}/moved", timeout=3.0, headers={"Authorization": "Bearer k"})
    assert [path for path, _ in outside.requests] == ["/api", "/moved"]


async def test_behind_a_proxy(outside: Hostile, inside: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n")).strip())
        await reader.readuntil(b"\r\n\r\n")
        if b"shop.example/" in asked[-1]:
            writer.write(moved("http://10.0.0.1/") if b"/away" in asked[-1] else PAGE)
        else:
            writer.write(reply(b"", status="403 Forbidden"))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.3", 0)
    address = f"http://user:pw@127.0.0.3:{server.sockets[0].getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, address)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    outside.answers["/page"] = PAGE
    tools = ToolsConfig(private_hosts=LISTED, proxies_from_env=True)
    async with open_http(tools, Redactor()) as client:
        assert await fetch(client, "http://shop.example/x") == b"<html>here</html>"
        assert await fetch(client, f"{outside.root}/page") == b"<html>here</html>"  # NO_PROXY
        await refused(client, f"{inside.root}/secret")
        await refused(client, "http://shop.example/away")
        with pytest.raises(ProviderError, match="the proxy answers HTTP 403") as caught:
            await fetch(client, "https://shop.example/x")
        assert caught.value.failure is ToolFailure.UNAVAILABLE
        assert "pw" not in caught.value.detail
    assert asked == [b"GET http://shop.example/x HTTP/1.1", b"GET http://shop.example/away HTTP/1.1", b"CONNECT shop.example:443 HTTP/1.1"]
    async with open_http(ToolsConfig(private_hosts=LISTED), Redactor()) as client:
        await fetch(client, f"{outside.root}/page")
    assert len(asked) == 3  # the environment counts only when asked for
    server.close()
    monkeypatch.setenv("https_proxy", "socks5://user:pw@127.0.0.3:1")
    with pytest.raises(ToolsError, match="HTTPS_PROXY is no http") as wrong:
        open_http(tools, Redactor())
    assert "pw" not in str(wrong.value)


async def test_a_remote_reader_is_not_asked_for_private_addresses(web: Web) -> None:
    config: Config = configure(web.root)
    config.tools.private_hosts = []
    async with LocalTools(config) as tools:  # the results lie on 127.0.0.1, which is not listed
        result = await tools.text_search("q", "question")
    assert result.failure is ToolFailure.NO_RESULTS
    assert "a private address" in result.detail
    assert web.counts["reader"] == 0
