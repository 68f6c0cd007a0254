"""A stand-in for every service behind the tools, for measurements: answers at once or after a set time, never the same page twice.

    python jobs/benchmark_server.py --ready FILE

writes its base URL to FILE once it listens. Shapes are those of SerpAPI, an image host, Jina Reader and an OpenAI-style
service. PUT /latency/<search>/<other> sets the seconds that a search and that any other request takes from then on; GET
/counts tells how many came, by service.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from PIL import Image

MATCHES = 10
PAGE = " ".join(f"The tower was painted for the {n}th time in {1900 + n} by the harbour company." for n in range(60))


def thumbnail() -> bytes:
    """224 x 224 pixels, about 8 kB, as search services send them."""
    tile = Image.effect_noise((28, 28), 40).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    tile.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


class Services:
    def __init__(self) -> None:
        self.search_seconds = self.other_seconds = 0.0
        self.counts: Counter[str] = Counter()
        self._thumbnail = thumbnail()

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._slowly], client_max_size=1 << 24)
        app.add_routes(
            [
                web.get("/search.json", self.search),
                web.post("/upload", self.upload),
                web.get("/thumb/{name}", self.thumb),
                web.get("/reader/{url:.+}", self.read),
                web.post("/v1/chat/completions", self.summarise),
                web.put("/latency/{search}/{other}", self.set_latency),
                web.get("/counts", self.count),
                web.get("/", self.count),
            ]
        )
        return app

    @web.middleware
    async def _slowly(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        if request.path.startswith(("/latency", "/counts")) or request.path == "/":
            return await handler(request)
        engine = request.query.get("engine", "")
        self.counts[engine or request.path.split("/")[1]] += 1
        if seconds := self.search_seconds if engine else self.other_seconds:
            await asyncio.sleep(seconds)
        return await handler(request)

    async def set_latency(self, request: web.Request) -> web.Response:
        self.search_seconds, self.other_seconds = float(request.match_info["search"]), float(request.match_info["other"])
        return web.Response(status=204)

    async def count(self, _: web.Request) -> web.Response:
        return web.json_response(self.counts)

    async def search(self, request: web.Request) -> web.Response:
        root = f"http://{request.host}"
        if request.query["engine"] == "google_lens":
            name = hashlib.sha256(request.query["url"].encode()).hexdigest()[:12]
            found = [
                {"title": f"Tower {n}", "link": f"https://pages.example/{name}/{n}", "thumbnail": f"{root}/thumb/{name}-{n}"}
                for n in range(MATCHES)
            ]
            return web.json_response({"search_metadata": {"status": "Success"}, "visual_matches": found})
        name = hashlib.sha256(request.query["q"].encode()).hexdigest()[:12]
        found = [{"title": f"Tower {n}", "link": f"https://pages.example/{name}/{n}"} for n in range(MATCHES)]
        return web.json_response({"search_metadata": {"status": "Success"}, "organic_results": found})

    async def upload(self, request: web.Request) -> web.Response:
        name = hashlib.sha256(await request.read()).hexdigest()
        return web.json_response({"url": f"https://pictures.example/{name}.png"})

    async def thumb(self, _: web.Request) -> web.Response:
        return web.Response(body=self._thumbnail, content_type="image/jpeg")

    async def read(self, request: web.Request) -> web.Response:
        content = f"{request.match_info['url']}\n\n{PAGE}"  # differs from page to page, so that no summary is another's
        return web.json_response({"code": 200, "data": {"title": "Tower", "content": content}})

    async def summarise(self, request: web.Request) -> web.Response:
        await request.read()
        message = {"role": "assistant", "content": "Summary: the tower was painted for the 59th time in 1959."}
        return web.json_response({"choices": [{"message": message}], "usage": {"prompt_tokens": 1000, "completion_tokens": 20}})


async def serve(ready: Path) -> None:
    """Until the process that started this one ends."""
    runner = web.AppRunner(Services().application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=2048)
    await site.start()
    ready.with_suffix(".part").write_text(f"http://127.0.0.1:{runner.addresses[0][1]}")
    ready.with_suffix(".part").rename(ready)
    parent = os.getppid()
    try:
        while os.getppid() == parent:  # noqa: ASYNC110 (an orphan stops by itself; nothing signals the parent's end)
            await asyncio.sleep(1.0)
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ready", required=True, type=Path, help="file that receives the base URL")
    asyncio.run(serve(parser.parse_args().ready))
