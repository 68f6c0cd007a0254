"""The Atlas web: one HTTP server with the shapes of the real services (spec §2.3).

`/search.json` speaks SerpAPI (engines `google_lens`, `google` and `google_images`), `/wiki/*` and `/journal/*` are HTML pages,
`/reader/<url>` answers as Jina Reader does, `/v1/chat/completions` as an OpenAI-compatible service (the models `atlas-oracle` and
`atlas-worldly` play the policy as Atlas's teachers, every other name is an author of questions where a JSON schema is asked for, and else
a summariser), `/upload` is an image host. On request it is slow, fails, limits, returns garbage or never answers: `Faults`, changed while
it runs by
PUT /faults.

    python -m mmsr_ray.atlas.web --seed 0 --port 0 --ready FILE

writes its base URL to FILE once it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import html
import json
import logging
import os
import random
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from mmsr_ray.atlas import author, chat, search
from mmsr_ray.atlas.latency import seconds_of
from mmsr_ray.atlas.oracle import TEACHERS, Teacher
from mmsr_ray.atlas.world import World, stable_seed

log = logging.getLogger(__name__)
MAX_UPLOAD = 20_000_000
POLICY = "atlas-"  # models of this name and a teacher's
_IMAGES = 8  # that an image search finds
_TAG = re.compile(r"<[^>]+>")


@dataclass
class Faults:
    """How badly the services behave. Rates are shares of requests in [0, 1]; latencies are in seconds."""

    latency: float = 0.0
    failure: float = 0.0  # 503
    limited: float = 0.0  # 429 with Retry-After
    garbage: float = 0.0  # 200 with a body that is no JSON
    hang: float = 0.0  # never answered: the connection stays open until the client goes away
    latency_tail: float = 0.0  # above 0: `latency` is a median (atlas.latency)
    latency_max: float = 3.0
    gone: float = 0.0  # share of pages that the reader finds gone, always the same ones
    # of the author: how often it answers so instead of doing what it is asked
    refuse: float = 0.0
    ramble: float = 0.0  # prose instead of JSON
    invent: float = 0.0  # an answer that is not in the page
    tell: float = 0.0  # a question that says the name


class AtlasWeb:
    def __init__(self, world: World, faults: Faults | None = None, seed: int = 0) -> None:
        self.world = world
        self.faults = faults or Faults()
        self.requests: dict[str, int] = {}
        self.base = ""
        self._uploads: dict[str, bytes] = {}
        self._answered: set[bytes] = set()
        self._rng = random.Random(seed)

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._misbehave], client_max_size=MAX_UPLOAD)
        app.add_routes(
            [
                web.get("/health", self.health),
                web.get("/search.json", self.serpapi),
                web.get("/pictures/{slug}/{view}.png", self.picture),
                web.get("/uploads/{sha}", self.uploaded),
                web.post("/upload", self.upload),
                web.get("/reader/{url:.+}", self.reader),
                web.post("/v1/chat/completions", self.chat),
                web.get("/{kind:wiki|journal}/{slug}", self.page),
                web.get("/stats", self.stats),
                web.put("/faults", self.set_faults),
            ]
        )
        return app

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path in ("/", "/health", "/faults", "/stats"):
            return await handler(request)
        service = request.query.get("engine") or request.path.split("/")[1]
        self._count(service)
        asked = hashlib.sha256(f"{request.method} {request.path_qs} ".encode() + await request.read()).digest()
        if asked in self._answered:
            self._count(f"{service} again")
        if self.faults.latency:
            await asyncio.sleep(await self._latency(request))
        draw = self._rng.random()
        for share, misbehave in (
            (self.faults.failure, _fail),
            (self.faults.limited, _limit),
            (self.faults.garbage, _talk_nonsense),
            (self.faults.hang, _hang),
        ):
            if draw < share:
                return await misbehave()
            draw -= share
        response = await handler(request)
        self._answered.add(asked)
        return response

    def _count(self, what: str) -> None:
        self.requests[what] = self.requests.get(what, 0) + 1

    async def _latency(self, request: web.Request) -> float:
        if self.faults.latency_tail == 0:
            return self.faults.latency
        asked = f"{request.method} {request.path} {sorted(request.query.items())} ".encode() + await request.read()
        return seconds_of(
            asked.replace(request.host.encode(), b"atlas"),  # its port is another one each time
            seed=self.world.seed,
            median=self.faults.latency,
            tail=self.faults.latency_tail,
            most=self.faults.latency_max,
        )

    # ------------------------------------------------------------------------------------------------ services

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"ok": True, "entities": len(self.world.entities), "seed": self.world.seed})

    async def stats(self, _: web.Request) -> web.Response:
        """Requests by service, and under "<service> again" those that were answered before."""
        return web.json_response(self.requests)

    async def set_faults(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        unknown = set(wanted) - {f.name for f in fields(Faults)}
        if unknown:
            return web.json_response({"error": f"there is no fault called {sorted(unknown)}"}, status=400)
        self.faults = Faults(**{**asdict(self.faults), **wanted})
        return web.json_response(asdict(self.faults))

    async def serpapi(self, request: web.Request) -> web.Response:
        engine = request.query.get("engine", "google")
        if engine == "google_lens":
            return await self._lens(request)
        if engine == "google_images":
            return self._images(request)
        if engine != "google":
            return web.json_response({"error": f"Unsupported `{engine}` search engine."}, status=400)
        found = search.google(self.world, request.query.get("q", ""))[: int(request.query.get("num", 10))]
        results = [
            {"position": i, "title": r.title, "link": self._url(request, r.link), "snippet": r.snippet} for i, r in enumerate(found, 1)
        ]
        return web.json_response({"search_metadata": {"status": "Success"}, "organic_results": results})

    async def _lens(self, request: web.Request) -> web.Response:
        picture = self._local_picture(request.query.get("url", ""))
        if picture is None:
            return web.json_response({"error": "the `url` names no picture that Atlas can reach"}, status=400)
        try:
            found = search.lens(self.world, picture)
        except OSError:
            return web.json_response({"error": "the `url` holds no picture"}, status=400)
        matches = [
            {
                "position": i, "title": m.title, "link": self._url(request, m.link), "source": "Atlas",
                "thumbnail": self._url(request, m.thumbnail),
            }
            for i, m in enumerate(found, 1)
        ]  # fmt: skip
        return web.json_response({"search_metadata": {"status": "Success"}, "visual_matches": matches})

    def _images(self, request: web.Request) -> web.Response:
        """Pictures of what the query names, on its pages in turn; views that no other service shows."""
        found = search.google(self.world, request.query.get("q", ""))
        if not found:
            nothing = "Google hasn't returned any results for this query."
            return web.json_response({"search_metadata": {"status": "Success"}, "error": nothing})
        results = []
        for i in range(_IMAGES):
            page = found[i % len(found)]
            slug = page.link.rsplit("/", 1)[-1]
            address = self._url(request, f"/pictures/{slug}/{search.FIRST_OWN_VIEW + i}.png")
            row = {"position": i + 1, "thumbnail": address, "original": address, "title": page.title, "source": "Atlas"}
            results.append(row | {"link": self._url(request, page.link), "license_details_url": self._url(request, "/licence")})
        return web.json_response({"search_metadata": {"status": "Success"}, "images_results": results})

    def _local_picture(self, url: str) -> bytes | None:
        parts = urlsplit(url).path.strip("/").split("/")
        if parts[0] == "uploads" and len(parts) == 2:
            return self._uploads.get(parts[1])
        if parts[0] == "pictures" and len(parts) == 3 and parts[1] in self.world.by_slug:
            return search.thumbnail(self.world, self.world.by_slug[parts[1]], int(parts[2].removesuffix(".png")))
        return None

    async def picture(self, request: web.Request) -> web.Response:
        entity = self.world.by_slug.get(request.match_info["slug"])
        view = request.match_info["view"]
        if entity is None or not view.isdigit():
            raise web.HTTPNotFound
        return web.Response(body=search.thumbnail(self.world, entity, int(view)), content_type="image/png")

    async def upload(self, request: web.Request) -> web.Response:
        body = await request.read()
        sha = hashlib.sha256(body).hexdigest()
        self._uploads[sha] = body
        return web.json_response({"url": self._url(request, f"/uploads/{sha}")})

    async def uploaded(self, request: web.Request) -> web.Response:
        body = self._uploads.get(request.match_info["sha"])
        if body is None:
            raise web.HTTPNotFound
        return web.Response(body=body, content_type="image/png")

    async def page(self, request: web.Request) -> web.Response:
        entity = self.world.by_slug.get(request.match_info["slug"])
        if entity is None:
            raise web.HTTPNotFound
        body = "".join(f"<p>{html.escape(s)}</p>" for s in search.sentences(self.world.pages(entity)[request.path]))
        return web.Response(text=_PAGE.format(title=html.escape(entity.name), slug=entity.slug, body=body), content_type="text/html")

    async def reader(self, request: web.Request) -> web.Response:
        """Jina Reader's shape: the page's readable text."""
        url = urlsplit(request.match_info["url"])
        slug = url.path.rsplit("/", 1)[-1]
        entity = self.world.by_slug.get(slug)
        text = self.world.pages(entity).get(url.path) if entity else None
        gone = stable_seed("gone", url.path) < self.faults.gone * 2**32
        if entity is None or text is None or gone:
            return web.json_response({"code": 404, "data": None, "message": "the page is gone"}, status=404)
        return web.json_response({"code": 200, "data": {"title": entity.name, "url": url.geturl(), "content": text}})

    async def chat(self, request: web.Request) -> web.Response:
        """An OpenAI-shaped model. One of POLICY plays the policy. Asked for a JSON schema it is an author (atlas.author); else it
        condenses the page in the last message for the question at its end.
        """
        try:
            asked: dict[str, Any] = await request.json()
            if str(asked["model"]).startswith(POLICY):
                return self._policy(asked)
            content = asked["messages"][-1]["content"]
            form = asked.get("response_format", {}).get("json_schema")
        except (json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
            error = {"message": "`model` or `messages` is missing", "type": "invalid_request_error"}
            return web.json_response({"error": error}, status=400)
        if form:
            lapse = self._lapse()
            said = author.reply(self.world, asked["messages"], form["name"], form["schema"], lapse)
            return _completion(said, len(json.dumps(asked["messages"])), refused=lapse is author.Lapse.REFUSE)
        text = content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
        page = max(text.split("\n\n"), key=len)  # whatever surrounds it, the page is the longest paragraph ...
        question = text.rpartition(":")[2]  # ... and the question comes last
        answer = search.summarise(_TAG.sub(" ", page.removeprefix("The page:")).strip(), question)
        return _completion(answer, len(text))

    def _lapse(self) -> author.Lapse | None:
        draw = self._rng.random()
        for lapse in author.Lapse:
            share = getattr(self.faults, lapse.value)
            if draw < share:
                return lapse
            draw -= share
        return None

    def _policy(self, asked: dict[str, Any]) -> web.Response:
        name, messages = asked["model"].removeprefix(POLICY), asked["messages"]
        if name not in TEACHERS:
            error = {"message": f"there is no model {asked['model']}", "type": "invalid_request_error", "code": "model_not_found"}
            return web.json_response({"error": error}, status=404)
        try:
            said = chat.say(Teacher(self.world, name), messages)
        except chat.NotUnderstood as error:
            return web.json_response({"error": {"message": str(error), "type": "invalid_request_error"}}, status=400)
        words = said.split()
        most = asked.get("max_tokens", len(words))
        cut = len(words) > most
        text = " ".join(words[:most]) if cut else said
        prompt = sum(len(chat.text_of(message["content"])) for message in messages) // 4 + 4 * chat.pictures_in(messages)
        usage = {"prompt_tokens": prompt, "completion_tokens": len(text.split())}
        choice = {"index": 0, "finish_reason": "length" if cut else "stop", "message": {"role": "assistant", "content": text}}
        return web.json_response({"id": "atlas", "object": "chat.completion", "model": asked["model"], "choices": [choice], "usage": usage})

    @staticmethod
    def _url(request: web.Request, path: str) -> str:
        return f"{request.scheme}://{request.host}{path}"


def _completion(answer: str, prompt_chars: int, *, refused: bool = False) -> web.Response:
    message = {"role": "assistant", "content": None, "refusal": answer} if refused else {"role": "assistant", "content": answer}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    given, made = prompt_chars // 4, len(answer) // 4
    usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    return web.json_response({"id": "atlas", "object": "chat.completion", "model": "atlas", "choices": [choice], "usage": usage})


async def _fail() -> web.Response:
    return web.Response(status=503, text="the service is down")


async def _limit() -> web.Response:
    return web.Response(status=429, text="too many requests", headers={"Retry-After": "0.2"})


async def _talk_nonsense() -> web.Response:
    return web.Response(text="<<not json>> \x00\ufffd", content_type="application/json")


async def _hang() -> web.Response:
    await asyncio.Event().wait()  # cancelled when the client goes away (handler_cancellation) or the server stops
    raise AssertionError("nothing sets this event")


_PAGE = (
    '<!doctype html><html lang="en"><head><title>{title}</title></head><body><nav>Atlas</nav><article><h1>{title}</h1>'
    '<img src="/pictures/{slug}/0.png" alt="{title}">{body}</article><footer>The Atlas web is made up.</footer></body></html>'
)


async def serve(world: World, host: str, port: int, faults: Faults) -> tuple[web.AppRunner, str]:
    """Start serving; returns the runner (to clean up) and the base URL."""
    atlas = AtlasWeb(world, faults)
    runner = web.AppRunner(atlas.application(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    actual = runner.addresses[0][1]
    return runner, f"http://{host}:{actual}"


async def _main(args: argparse.Namespace) -> None:
    world = World(args.seed, **json.loads(args.pools))
    runner, base = await serve(world, args.host, args.port, Faults(**json.loads(args.faults)))
    log.info("the Atlas web listens on %s", base)
    ready = Path(args.ready)
    ready.with_suffix(".part").write_text(base)
    ready.with_suffix(".part").rename(ready)
    parent = os.getppid()
    try:
        while os.getppid() == parent:  # noqa: ASYNC110 (an orphan stops by itself; nothing signals the parent's end)
            await asyncio.sleep(1.0)
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    parser = argparse.ArgumentParser(description="serve the Atlas web")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pools", default="{}", help="JSON of the world's pool sizes")
    parser.add_argument("--faults", default="{}", help="JSON of Faults")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ready", required=True, help="file that receives the base URL")
    asyncio.run(_main(parser.parse_args()))
