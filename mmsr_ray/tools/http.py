"""One HTTP client for all providers: bounded bodies, typed failures, no secrets in what it says.

Promise: `request` either returns a 2xx reply with a body of at most `limit` bytes or raises ProviderError whose text
names the service without query string, key or body secrets. One instance serves one event loop; the session is made
on first use in that loop.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import aiohttp
from yarl import URL

from mmsr_ray.tools.errors import ProviderError, Redactor
from mmsr_ray.tools.foreign import clean_line
from mmsr_ray.types import ToolFailure

JSON_BYTES = 10_000_000
PAGE_BYTES = 5_000_000
_ERROR_BYTES = 2_000  # of an error body that are read at all
_USER_AGENT = "mmsr-ray/0.1"


@dataclass(frozen=True, slots=True)
class Reply:
    body: bytes
    content_type: str
    charset: str

    @property
    def text(self) -> str:
        try:
            return self.body.decode(self.charset, "replace")
        except LookupError:
            return self.body.decode("utf-8", "replace")


class Http:
    def __init__(self, redact: Redactor) -> None:
        self.redact = redact
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300)  # concurrency is bounded per service, above
            self._session = aiohttp.ClientSession(
                connector=connector, headers={"User-Agent": _USER_AGENT}, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

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
        redirects: bool = False,
    ) -> Reply:
        """One request, `timeout` seconds in all. Redirects stay off where a key travels along."""
        where = f"{method} {public(url)}"
        try:
            async with self._client().request(
                method,
                url,
                params=params,
                headers=headers,
                data=body,
                allow_redirects=redirects,
                max_redirects=5,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                if not 200 <= response.status < 300:
                    raise await self._refusal(where, response)
                declared = response.content_length
                if declared is not None and declared > limit:
                    raise ProviderError(
                        ToolFailure.BAD_RESPONSE, f"{where}: body of {declared} bytes is over the limit of {limit}", retry=False
                    )
                data = await _read(response, limit)
                if len(data) > limit:
                    raise ProviderError(ToolFailure.BAD_RESPONSE, f"{where}: body is over the limit of {limit} bytes", retry=False)
                return Reply(data, response.content_type, response.charset or "utf-8")
        except TimeoutError:
            raise ProviderError(ToolFailure.TIMEOUT, f"{where}: no answer in {timeout:g} s") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, aiohttp.TooManyRedirects, ValueError) as error:
            raise ProviderError(ToolFailure.REJECTED, f"{where}: {type(error).__name__}") from None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
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
            value = json.loads(reply.body)
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
        except ValueError:
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
