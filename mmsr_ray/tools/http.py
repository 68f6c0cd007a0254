"""One HTTP client for all tools: bounded bodies, typed failures, no secrets in what it says.

Promise: `request` and `json` ask the services that the user configured; `fetch` reads the open web, which is hostile.
Each returns a 2xx reply with a body of at most `limit` bytes, decompressed, or raises ProviderError whose text names the
server without query string, key or body secrets, and ends by `timeout`.

`fetch` connects to public addresses only, and to those in `reach`. That is enforced on the address of the socket, at
every redirect, so neither a name that resolves to a private address nor one that changes in between gets past it. It
sends no cookie, no key and no Referer, and takes no `netrc`. Behind a proxy (`proxies`) it is the proxy that resolves
names: then only addresses written out in a URL, and names that are private by their form, are refused here.

One instance serves one event loop; sessions are made on first use in that loop.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import email.utils
import errno
import json
import math
import socket
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import aiohttp
from yarl import URL

from mmsr_ray.config import ToolsConfig
from mmsr_ray.tools.addresses import Reach
from mmsr_ray.tools.errors import ProviderError, Redactor, ToolsError
from mmsr_ray.tools.foreign import URL_CHARS, clean_line
from mmsr_ray.types import ToolFailure

JSON_BYTES = 10_000_000
PAGE_BYTES = 5_000_000
REDIRECTS = 5
_ERROR_BYTES = 2_000  # of an error body that are read at all
_USER_AGENT = "mmsr-ray/0.1"
_MOVED = (301, 302, 303, 307, 308)
# Codecs that Python calls text, yet no page is written in: quadratic, raising whatever they are asked to replace, or escapes.
_NO_CHARSETS = {"punycode", "idna", "undefined", "unicode_escape", "raw_unicode_escape", "utf-7", "mbcs", "oem"}
_REFUSED = "not a public address"


@dataclass(frozen=True, slots=True)
class Reply:
    """`charset` is what the server declared, "" when it declared none."""

    body: bytes
    content_type: str
    charset: str

    @property
    def text(self) -> str:
        """The body in its declared charset, else in UTF-8; what does not decode is replaced."""
        try:
            name = codecs.lookup(self.charset or "utf-8").name
            return self.body.decode("utf-8" if name in _NO_CHARSETS else name, "replace")
        except (LookupError, ValueError):  # unknown; a name with a null character
            return self.body.decode("utf-8", "replace")


class AddressRefused(OSError):
    """A connection to an address that the open web must not lead to."""


class Http:
    """`proxies` by scheme (`environment_proxies`), for both kinds of request."""

    def __init__(self, redact: Redactor, *, reach: Reach | None = None, proxies: Mapping[str, str] | None = None) -> None:
        self.redact = redact
        self._reach, self._proxies = reach or Reach(), dict(proxies or {})
        self._trusted: aiohttp.ClientSession | None = None  # to services, proxies and listed names
        self._guarded: aiohttp.ClientSession | None = None  # to whatever the web names

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        for session in (self._trusted, self._guarded):
            if session is not None:
                await session.close()
        self._trusted = self._guarded = None

    def _trusted_session(self) -> aiohttp.ClientSession:
        if self._trusted is None:
            self._trusted = _session(aiohttp.TCPConnector(limit=0, ttl_dns_cache=300))  # concurrency is bounded per service, above
        return self._trusted

    def _guarded_session(self) -> aiohttp.ClientSession:
        if self._guarded is None:
            self._guarded = _session(aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, socket_factory=self._public_socket))
        return self._guarded

    def _public_socket(self, address: Any) -> socket.socket:
        """The socket of one connection to the open web. Called for literals and for each address of a name alike."""
        family, kind, protocol, _, where = address
        if not self._reach.allows(str(where[0])):
            raise AddressRefused(errno.EACCES, _REFUSED)
        return socket.socket(family, kind, protocol)

    def _proxy(self, url: URL) -> str | None:
        proxy = self._proxies.get(url.scheme)
        return None if proxy is None or urllib.request.proxy_bypass(f"{url.raw_host}:{url.port}", self._proxies) else proxy

    async def request(
        self,
        method: str,
        url: str | URL,
        *,
        timeout: float,
        limit: int = JSON_BYTES,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> Reply:
        """One request to a configured service. Follows no redirect: a key may travel along."""
        where = f"{method} {public(url)}"
        with self._typed(where, timeout):
            target = URL(url) if isinstance(url, str) else url
            async with (
                asyncio.timeout(timeout),
                self._trusted_session().request(
                    method, target, params=params, headers=headers, data=body, allow_redirects=False, proxy=self._proxy(target)
                ) as response,
            ):
                return await self._reply(where, response, limit, ())

    async def fetch(self, url: str, *, timeout: float, limit: int, types: tuple[str, ...] = ()) -> Reply:
        """GET of a foreign address, through at most five redirects, each checked.

        `types` are beginnings of the content types that are read at all (empty: any). NO_RESULTS is whatever the address
        itself is to blame for: refused, gone, of another type, too long, garbage, redirects without end. A server that
        is unwell or silent fails as a service does.
        """
        try:
            with self._typed(f"GET {public(url)}", timeout):
                async with asyncio.timeout(timeout):
                    return await self._follow(URL(url), limit, types)
        except ProviderError as error:
            if error.failure in (ToolFailure.REJECTED, ToolFailure.BAD_RESPONSE):
                raise ProviderError(ToolFailure.NO_RESULTS, error.detail, status=error.status) from None
            raise

    def refusal(self, url: str) -> str:
        """Why `url` must not be asked for, by us or by a service in our stead; "" when its text says nothing against it."""
        try:
            return self._reach.refusal(URL(url))
        except ValueError:
            return "malformed"

    async def _follow(self, target: URL, limit: int, types: tuple[str, ...]) -> Reply:
        seen: set[URL] = set()
        for _ in range(REDIRECTS + 1):
            where = f"GET {public(target)}"
            if why := self._reach.refusal(target):
                raise ProviderError(ToolFailure.NO_RESULTS, f"{where}: {why}")
            if target in seen:
                raise ProviderError(ToolFailure.NO_RESULTS, f"{where}: redirects in a circle")
            seen.add(target)
            proxy = self._proxy(target)
            session = self._trusted_session() if proxy or self._reach.lists(target) else self._guarded_session()
            async with session.get(target, allow_redirects=False, proxy=proxy, headers={"Accept-Encoding": "gzip, deflate"}) as response:
                if response.status not in _MOVED:
                    return await self._reply(where, response, limit, types)
                location = response.headers.get("Location", "")
                if not location or len(location) > URL_CHARS:
                    raise ProviderError(ToolFailure.NO_RESULTS, f"{where}: redirects nowhere")
                target = target.join(URL(location)).with_fragment(None)
        raise ProviderError(ToolFailure.NO_RESULTS, f"GET {public(target)}: more than {REDIRECTS} redirects")

    async def _reply(self, where: str, response: aiohttp.ClientResponse, limit: int, types: tuple[str, ...]) -> Reply:
        if not 200 <= response.status < 300:
            raise await self._refusal(where, response)
        kind = response.content_type.lower()
        if types and not kind.startswith(types):
            raise _unfit(f"{where}: {clean_line(kind, 60)} is of no use here")
        declared = response.content_length
        if declared is not None and declared > limit:
            raise _unfit(f"{where}: body of {declared} bytes is over the limit of {limit}")
        data = await _read(response, limit)
        if len(data) > limit:
            raise _unfit(f"{where}: body is over the limit of {limit} bytes")
        return Reply(data, kind, response.charset or "")

    @contextlib.contextmanager
    def _typed(self, where: str, timeout: float) -> Iterator[None]:
        """Whatever goes wrong on the way becomes a ProviderError."""
        try:
            yield
        except TimeoutError:
            raise ProviderError(ToolFailure.TIMEOUT, f"{where}: no answer in {timeout:g} s") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError) as error:
            raise ProviderError(ToolFailure.REJECTED, f"{where}: {type(error).__name__}") from None
        except aiohttp.ClientHttpProxyError as error:
            raise ProviderError(ToolFailure.UNAVAILABLE, f"{where}: the proxy answers HTTP {error.status}") from None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, AddressRefused):
                raise ProviderError(ToolFailure.NO_RESULTS, f"{where}: {_REFUSED}") from None
            raise ProviderError(ToolFailure.UNAVAILABLE, self.redact(f"{where}: {type(error).__name__}: {error}")) from None
        except aiohttp.ClientError as error:
            raise ProviderError(ToolFailure.BAD_RESPONSE, f"{where}: {type(error).__name__}") from None

    async def json(
        self,
        method: str,
        url: str | URL,
        *,
        timeout: float,
        payload: dict[str, Any] | None = None,
        body: bytes | None = None,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """A JSON object. Raises BAD_RESPONSE for anything else. `payload` is sent as JSON, `body` as it is."""
        headers = {"Accept": "application/json"} | (headers or {})
        if payload is not None:
            body = json.dumps(payload).encode()
            headers["Content-Type"] = "application/json"
        reply = await self.request(method, url, timeout=timeout, params=params, body=body, headers=headers)
        try:
            value = json.loads(reply.body, parse_constant=_finite, parse_float=_finite)
        except (ValueError, RecursionError):
            raise ProviderError(ToolFailure.BAD_RESPONSE, f"{method} {public(url)}: the body is not JSON") from None
        if not isinstance(value, dict):
            raise ProviderError(ToolFailure.BAD_RESPONSE, f"{method} {public(url)}: JSON {type(value).__name__} where an object belongs")
        return cast(dict[str, Any], value)

    async def _refusal(self, where: str, response: aiohttp.ClientResponse) -> ProviderError:
        said = clean_line(self.redact((await _read(response, _ERROR_BYTES)).decode("utf-8", "replace")), 200)
        detail = f"{where}: HTTP {response.status} {said}".rstrip()
        after = retry_after(response.headers.get("Retry-After", ""), time.time())
        if response.status == 429:
            return ProviderError(ToolFailure.RATE_LIMITED, detail, retry_after=after, status=429)
        if response.status == 408 or response.status == 504:
            return ProviderError(ToolFailure.TIMEOUT, detail, status=response.status)
        if response.status >= 500:
            return ProviderError(ToolFailure.UNAVAILABLE, detail, retry_after=after, status=response.status)
        return ProviderError(ToolFailure.REJECTED, detail, status=response.status)


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    """Without cookies, `netrc` or the environment's proxies; deadlines are set around each request."""
    headers, jar = {"User-Agent": _USER_AGENT}, aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(connector=connector, headers=headers, cookie_jar=jar, timeout=aiohttp.ClientTimeout(total=None))


def _unfit(detail: str) -> ProviderError:
    return ProviderError(ToolFailure.BAD_RESPONSE, detail, retry=False)


def _finite(text: str) -> float:
    """A JSON number with a fraction or exponent. Raises ValueError for NaN, infinities and what overflows to them."""
    if not math.isfinite(value := float(text)):
        raise ValueError("not a finite number")
    return value


def open_http(config: ToolsConfig, redact: Redactor) -> Http:
    """The client that `config` asks for. Raises ToolsError for proxies that cannot be used."""
    return Http(redact, reach=Reach.parse(config.private_hosts), proxies=environment_proxies() if config.proxies_from_env else {})


def environment_proxies() -> dict[str, str]:
    """HTTP_PROXY, HTTPS_PROXY and NO_PROXY. Raises ToolsError for a proxy that is no HTTP proxy; never shows its password."""
    found = urllib.request.getproxies()
    for scheme in ("http", "https"):
        if scheme in found and not found[scheme].startswith(("http://", "https://")):
            raise ToolsError(f"{scheme.upper()}_PROXY is no http(s) URL: correct it, or set tools.proxies_from_env=false")
    return found


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """At most `limit` + 1 bytes of the (decompressed) body."""
    data = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        data += chunk
        if len(data) > limit:
            break
    return bytes(data[: limit + 1])


def public(url: str | URL) -> str:
    """Scheme, host, port and path: what may be logged of a URL. Keys travel in query strings and user info."""
    try:
        parsed = URL(url) if isinstance(url, str) else url
        return str(parsed.with_query(None).with_fragment(None).with_user(None))[:300] if parsed.is_absolute() else "<relative URL>"
    except ValueError:
        return "<malformed URL>"


def retry_after(header: str, now: float) -> float | None:
    """Seconds of a Retry-After header (a number or an HTTP date), None when there is none or it is nonsense."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return min(max(seconds, 0.0), 3600.0) if seconds == seconds else None


async def reachable(http: Http, url: str, timeout: float) -> str:
    """ "" when something speaks HTTP at the origin of `url`, else why not. Sends no key and asks for nothing that costs."""
    try:
        await asyncio.wait_for(http.request("GET", URL(url).origin(), timeout=timeout, limit=PAGE_BYTES), timeout + 1)
    except ProviderError as error:
        return error.detail if error.failure in (ToolFailure.TIMEOUT, ToolFailure.UNAVAILABLE) and not error.status else ""
    except (TimeoutError, ValueError) as error:
        return f"{public(url)}: {type(error).__name__}"
    return ""
