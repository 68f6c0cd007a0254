"""What the suite `tools` measures with: a stand-in for the services, the tool actors pointed at it, a bare client, a load.

Promise: the bare client makes the requests that the tools make, in the same order and as many at once, and does nothing
with the answers but parse them. A result that is not whole stops the measurement.
"""

from __future__ import annotations

import asyncio
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp
from PIL import Image

from mmsr_ray.config import Config, ProviderConfig
from mmsr_ray.tools.actor import RemoteTools, start_tools, stop_tools
from mmsr_ray.types import ToolResult

SERVER = Path(__file__).with_name("benchmark_server.py")
START_SECONDS = 30.0
MOST = 512  # requests in flight to one service


@dataclass(frozen=True, slots=True)
class Server:
    base: str

    def take(self, *, search: float, other: float) -> None:
        """Seconds of every request from now on."""
        self._ask("PUT", f"/latency/{search}/{other}")

    def counts(self) -> dict[str, int]:
        """Requests so far, by service."""
        return json.loads(self._ask("GET", "/counts"))

    def _ask(self, method: str, path: str) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(self.base + path, method=method), timeout=10) as reply:
            return reply.read()


@contextmanager
def stand_in() -> Iterator[Server]:
    """The services in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "base"
        process = subprocess.Popen([sys.executable, str(SERVER), "--ready", str(ready)])
        try:
            deadline = time.monotonic() + START_SECONDS
            while not ready.is_file():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the stand-in server did not start: run {SERVER} --ready FILE to see why")
                time.sleep(0.05)
            yield Server(ready.read_text())
        finally:
            process.terminate()
            process.wait(timeout=10)


def pointed_at(config: Config, server: Server, *, topk: int, rate: float = 0.0, burst: int = 1) -> Config:
    """The config with every service at the stand-in; `rate` and `burst` of the two search services, 0 for no limit."""

    def service(kind: str, path: str, limit: float = 0.0) -> ProviderConfig:
        return ProviderConfig(
            kind=kind, url=server.base + path, rate_per_second=limit, burst=burst, concurrency=MOST, timeout_seconds=30.0, model="m"
        )

    tools = replace(
        config.tools,
        image_search=service("serpapi_lens", "/search.json", rate),
        image_host=service("upload", "/upload"),
        text_search=service("serpapi", "/search.json", rate),
        reader=service("jina", "/reader/"),
        summariser=service("chat", "/v1"),
        private_hosts=["127.0.0.1"],
        actors=2,
        deadline_seconds=60.0,
    )
    return replace(config, tools=tools, agent=replace(config.agent, topk=topk))


@contextmanager
def running(config: Config) -> Iterator[RemoteTools]:
    """The tool actors of a run of its own."""
    here = replace(config, run=replace(config.run, name=f"benchmark-{time.time_ns()}"))
    started = start_tools(here)
    try:
        yield started
    finally:
        stop_tools(here)


class BareClient:
    """The requests of both searches by plain aiohttp."""

    def __init__(self, base: str, topk: int) -> None:
        self._base, self._topk = base, topk
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.close()

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> None:
        async with self._http.post(f"{self._base}/upload", data=picture_bytes) as reply:
            url = (await reply.json())["url"]
        matches = await self._search({"engine": "google_lens", "url": str(url)}, "visual_matches")
        await asyncio.gather(*(self._read(match["thumbnail"]) for match in matches))

    async def text_search(self, query: str, question: str) -> None:
        results = await self._search({"engine": "google", "q": query, "num": str(2 * self._topk)}, "organic_results")
        await asyncio.gather(*(self._summary(result["link"], question) for result in results))

    async def _search(self, params: dict[str, str], field: str) -> list[dict[str, Any]]:
        async with self._http.get(f"{self._base}/search.json", params=params) as reply:
            return (await reply.json())[field][: self._topk]

    async def _read(self, url: str) -> bytes:
        async with self._http.get(url) as reply:
            return await reply.read()

    async def _summary(self, link: str, question: str) -> None:
        page = json.loads(await self._read(f"{self._base}/reader/{link}"))["data"]["content"]
        messages = [{"role": "system", "content": "Condense."}, {"role": "user", "content": f"{page}\n{question}"}]
        async with self._http.post(f"{self._base}/v1/chat/completions", json={"model": "m", "messages": messages}) as reply:
            await reply.json()


class Searches(Protocol):
    """The two searches, whatever they return."""

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> object: ...

    async def text_search(self, query: str, question: str) -> object: ...


@dataclass(frozen=True, slots=True)
class Played:
    """Wall seconds of all trajectories, and the seconds of each call."""

    wall: float
    calls: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.calls)


async def play(searches: Searches, photos: Sequence[bytes], *, topk: int, start_of: Callable[[int], float]) -> Played:
    """One trajectory for each photo: an image search, then a text search of its own; number n begins `start_of(n)` seconds in.

    Raises RuntimeError for a result without `topk` hits.
    """
    seconds: list[float] = []

    async def timed(search: Callable[[], Any]) -> None:
        began = time.perf_counter()
        result = await search()
        seconds.append(time.perf_counter() - began)
        if isinstance(result, ToolResult) and len(result.hits) != topk:
            raise RuntimeError(f"{len(result.hits)} of {topk} hits: {result.failure} {result.detail}")

    async def trajectory(number: int, photo: bytes) -> None:
        await asyncio.sleep(start_of(number))
        await timed(lambda: searches.image_search(photo, None, "Who built this?"))
        await timed(lambda: searches.text_search(f"who built tower {photo.hex()[-40:]}", "Who built this?"))

    began = time.perf_counter()
    await asyncio.gather(*(trajectory(number, photo) for number, photo in enumerate(photos)))
    return Played(time.perf_counter() - began, seconds)


async def one_by_one(searches: Searches, photos: Sequence[bytes], *, topk: int) -> Played:
    """`play` without anything side by side."""
    parts = [await play(searches, [photo], topk=topk, start_of=lambda _: 0.0) for photo in photos]
    return Played(sum(part.wall for part in parts), [second for part in parts for second in part.calls])


class Photos:
    """Pictures of which none comes twice."""

    def __init__(self) -> None:
        self._made = 0

    def take(self, count: int) -> list[bytes]:
        return [self._next() for _ in range(count)]

    def _next(self) -> bytes:
        self._made += 1
        buffer = io.BytesIO()
        Image.new("RGB", (56, 56), (self._made % 256, self._made // 256 % 256, 7)).save(buffer, "PNG")
        return buffer.getvalue() + f"{self._made:020}".encode()  # decoders stop before it; queries are made of it
