"""A small real web on 127.0.0.1 with the shapes of the services, and knobs to make it slow, broken or rude."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web
from PIL import Image

from mmsr_ray.config import Config, ProviderConfig

KEY = "s3cret+key/with=odd&chars"

Rude = Callable[[web.Request, int], web.StreamResponse | None]


def png(colour: int = 100, side: int = 28) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (colour % 256, 10, 20)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Web:
    """`rude[kind](request, n)` may answer in place of the service; n counts that kind's requests from 1."""

    delay: dict[str, float] = field(default_factory=dict)
    rude: dict[str, Rude] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    matches: int = 8
    results: int = 8
    queries: list[dict[str, str]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    busy: int = 0
    peak: int = 0
    port: int = 0
    _runner: web.AppRunner | None = None

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 24, middlewares=[self._middle])
        app.router.add_get("/search.json", self._search)
        app.router.add_get("/reader/{url:.*}", self._reader)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/upload", self._upload)
        app.router.add_post("/serper/{what}", self._serper)
        app.router.add_get("/searxng/search", self._searxng)
        app.router.add_get("/thumb/{n}", self._thumb)
        app.router.add_get("/wiki/{n}", self._wiki)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _middle(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        kind = request.path.split("/")[1].removesuffix(".json")
        if kind == "search":
            kind = request.query.get("engine", "?")
            self.queries.append(dict(request.query))
        self.counts[kind] += 1
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        try:
            if kind in self.delay:
                await asyncio.sleep(self.delay[kind])
            rude = self.rude.get(kind)
            return (rude(request, self.counts[kind]) if rude else None) or await handler(request)
        finally:
            self.busy -= 1

    async def _search(self, request: web.Request) -> web.Response:
        if request.query["engine"] == "google_lens":
            hits = [
                {"position": i + 1, "title": f"Match {i}", "link": f"{self.root}/wiki/{i}", "thumbnail": f"{self.root}/thumb/{i}"}
                for i in range(self.matches)
            ]
            return web.json_response({"search_metadata": {"status": "Success"}, "visual_matches": hits})
        if request.query["engine"] == "google_images":
            return web.json_response(
                {"search_metadata": {"status": "Success"}, "images_results": self._images("original", "license_details_url")}
            )
        hits = [{"position": i + 1, "title": f"Result {i}", "link": f"{self.root}/wiki/{i}", "snippet": "s"} for i in range(self.results)]
        return web.json_response({"search_metadata": {"status": "Success"}, "organic_results": hits})

    async def _serper(self, request: web.Request) -> web.Response:
        self.queries.append({"key": request.headers.get("X-API-KEY", "")} | await request.json())
        if request.match_info["what"] == "images":
            about = {"q": "x", "type": "images", "engine": "google", "num": 10}
            return web.json_response({"searchParameters": about, "images": self._serper_images(), "credits": 1})
        return web.json_response({"organic": [{"title": "S", "link": f"{self.root}/wiki/0", "thumbnailUrl": f"{self.root}/thumb/0"}]})

    def _images(self, picture: str, licence: str) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = [
            {"title": f"<b>Image {i}</b>", picture: f"{self.root}/thumb/{i}", "link": f"{self.root}/wiki/{i}", "source": "Wiki"}
            for i in range(self.matches)
        ]
        return [{"title": "no page", picture: f"{self.root}/thumb/9"}, *(row | {licence: f"{self.root}/licence"} for row in rows)]

    def _serper_images(self) -> list[dict[str, object]]:
        """Fields as answers of the service have them that people published; the last three stand in some rows only."""
        sizes = {"imageWidth": 814, "imageHeight": 1000, "thumbnailWidth": 202, "thumbnailHeight": 249}
        rights = {"creator": "Somebody", "credit": "Wiki"}
        return [
            row | sizes | rights | {"thumbnailUrl": "", "domain": "wiki.example", "googleUrl": f"{self.root}/imgres", "position": n + 1}
            for n, row in enumerate(self._images("imageUrl", "copyright"))
        ]

    async def _searxng(self, request: web.Request) -> web.Response:
        return web.json_response({"results": [{"title": "X", "url": f"{self.root}/wiki/{i}"} for i in range(30)]})

    async def _reader(self, request: web.Request) -> web.Response:
        url = request.path_qs.removeprefix("/reader/")
        return web.json_response(
            {
                "code": 200,
                "data": {"url": url, "title": f"T {url[-1]}", "content": f"Page {url}. The tower is {url[-1]} metres high.\x00\u202e"},
            }
        )

    async def _chat(self, request: web.Request) -> web.Response:
        prompt = json.dumps((await request.json())["messages"])
        self.prompts.append(prompt)
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": f"Summary {self.counts['v1']}."}}]})

    async def _upload(self, request: web.Request) -> web.Response:
        data = await request.read()
        return web.json_response({"url": f"{self.root}/img/{len(data)}"})

    async def _thumb(self, request: web.Request) -> web.Response:
        return web.Response(body=png(int(request.match_info["n"])), content_type="image/png")

    async def _wiki(self, request: web.Request) -> web.Response:
        n = request.match_info["n"]
        prose = " ".join(f"The lighthouse number {n} was built by the harbour company in {1800 + i}." for i in range(12))
        return web.Response(
            text=f"<html><head><title>Page {n}</title></head><body><nav>menu</nav><article><h1>Page {n}</h1><p>{prose}</p></article></body></html>",
            content_type="text/html",
        )


def configure(root: str, **tools: object) -> Config:
    """A config of every service at `root`, fast retries, no rate limits."""
    config = Config()

    def service(kind: str, path: str, key_env: str = "") -> ProviderConfig:
        return ProviderConfig(kind=kind, url=root + path, key_env=key_env, rate_per_second=0, timeout_seconds=5.0, model="m")

    t = config.tools
    t.image_search, t.text_search = service("serpapi_lens", "/search.json"), service("serpapi", "/search.json")
    t.image_host, t.reader, t.summariser = service("upload", "/upload"), service("jina", "/reader/"), service("chat", "/v1")
    t.private_hosts = ["127.0.0.1"]
    t.deadline_seconds, t.breaker_cooldown_seconds = 10.0, 0.3
    for name, value in tools.items():
        setattr(t, name, value)
    return config
