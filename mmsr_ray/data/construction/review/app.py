"""The review's web server: pages of aiohttp and jinja2, and one script of ours.

Why not a toolkit: Gradio (not installed) keeps state in the session and has neither single-key commands nor several people on one
queue; Label Studio is a service with a database of its own, so its format is read and written instead (`exchange`). aiohttp and
jinja2 are dependencies anyway.

Promise: a decision is committed before the answer says so. The server fetches nothing from anywhere. What pages and models wrote is
text: escaped, cut where it is long, links http(s) only; the browser runs our script alone and loads nothing from elsewhere (CSP).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aiohttp import web

from mmsr_ray.data.construction.review import access
from mmsr_ray.data.construction.review.agreement import overview
from mmsr_ray.data.construction.review.pages import Pages
from mmsr_ray.data.construction.review.stage import Stage
from mmsr_ray.data.construction.review.store import Conflict, Store
from mmsr_ray.data.construction.review.verdicts import Decision, Verdict, Words, complaint
from mmsr_ray.observability.pictures import shown

logger = logging.getLogger(__name__)
T = TypeVar("T")

ANNOTATOR, TOKEN = web.RequestKey("annotator", str), web.RequestKey("token", str)  # of who sends the request
MOST_BYTES = 64 * 1024  # of a request
DEADLINE_SECONDS = 20.0  # of whatever a request does with the disk
PICTURE_SIDE = 1600  # pixels
STATIC = {"review.css": "text/css", "review.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Review:
    """The handlers. Everything that touches the disk runs on one thread, in the order in which it was asked for."""

    def __init__(self, store: Store, stage: Stage, port: int) -> None:
        self._store, self._stage = store, stage
        self._pages = Pages(stage.path.name)
        self._cookie = f"mmsr_review_{port}"  # cookies know no ports
        self._thread = ThreadPoolExecutor(1, "review")
        self._picture_held: tuple[str, tuple[bytes, str] | None] = ("", None)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._outer], client_max_size=MOST_BYTES)
        app.add_routes(
            [
                web.get("/", self._next),
                web.get("/enter/{token}", self._enter),
                web.get("/next", self._next),
                web.get("/item/{key}", self._item),
                web.get("/picture/{key}", self._picture),
                web.get("/overview", self._overview),
                web.get("/static/{name}", self._static),
                web.post("/decide", self._decide),
                web.post("/draft", self._draft),
            ]
        )
        return app

    # ------------------------------------------------------------------------------------------------ around every request

    @web.middleware
    async def _outer(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        try:
            response = await self._admitted(request, handler)
        except Conflict as conflict:
            response = web.json_response({"kind": conflict.kind, "message": str(conflict)}, status=409)
        except (sqlite3.Error, TimeoutError) as error:
            logger.warning("%s %s: %s", request.method, request.match_info.route.resource, error)
            response = web.json_response({"kind": "busy", "message": f"The review file cannot be written: {error}"}, status=503)
        except web.HTTPException as error:
            error.headers.update(HEADERS)
            raise
        response.headers.update({name: value for name, value in HEADERS.items() if name not in response.headers})
        return response

    async def _admitted(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        if handler in (self._enter, self._static) or request.match_info.http_exception is not None:
            return await handler(request)
        token = request.cookies.get(self._cookie, "")
        name = await self._on_disk(self._store.annotator, access.hashed(token))
        if name is None:
            return self._html(self._pages.stranger(), status=401)
        if request.method != "GET":
            access.refuse_foreign(request, token)
        request[ANNOTATOR], request[TOKEN] = name, token
        return await handler(request)

    async def _on_disk(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self._thread, work, *given), DEADLINE_SECONDS)

    def _html(self, text: str, status: int = 200) -> web.Response:
        return web.Response(text=text, content_type="text/html", status=status)

    # ------------------------------------------------------------------------------------------------ pages

    async def _enter(self, request: web.Request) -> web.StreamResponse:
        token = request.match_info["token"]
        if await self._on_disk(self._store.annotator, access.hashed(token)) is None:
            return self._html(self._pages.stranger(), status=401)
        response = web.HTTPSeeOther("/")
        response.set_cookie(self._cookie, token, max_age=access.COOKIE_SECONDS, httponly=True, samesite="Lax", path="/")
        raise response

    async def _next(self, request: web.Request) -> web.StreamResponse:
        key = await self._on_disk(self._store.next_item, request[ANNOTATOR], request.query.get("after"))
        if key is None:
            return self._html(await self._on_disk(self._done_page, request[ANNOTATOR]))
        raise web.HTTPSeeOther(f"/item/{key}")

    def _done_page(self, me: str) -> str:
        return self._pages.done(me, self._overview_now(), self._store.path_of(me))

    async def _item(self, request: web.Request) -> web.StreamResponse:
        key = request.match_info["key"]
        if key not in self._stage.contents:
            raise web.HTTPNotFound(text="there is no such candidate in this version of the stage")
        return self._html(await self._on_disk(self._item_page, key, request[ANNOTATOR], request[TOKEN]))

    def _item_page(self, key: str, me: str, token: str) -> str:
        store = self._store
        store.open_item(key, me)
        own, look, path = store.own(key, me), store.may_look(key, me), store.path_of(me)
        at = path.index(key)
        state = {
            "annotator": me,
            "form": access.form_token(token),
            "key": key,
            "content": self._stage.contents[key],
            "look": look,
            "base": store.version(key, me),
            "own": own is not None,
            "draft": store.draft(key, me),
            "previous": f"/item/{path[at - 1]}" if at else None,
            "next": f"/item/{path[at + 1]}" if at + 1 < len(path) else f"/next?after={key}",
            "decided": store.decided(me),
            "last": _brief(store.last(me), store),
        }
        earlier = [d for d in store.current(key) if d.annotator != me] if look == 2 else []
        return self._pages.item(self._stage.get(key), state, own, earlier, picture=self._shown(key) is not None)

    async def _overview(self, request: web.Request) -> web.StreamResponse:
        return self._html(self._pages.overview(request[ANNOTATOR], await self._on_disk(self._overview_now)))

    def _overview_now(self) -> Any:
        return overview(self._store.outcomes(), self._store.annotators(), self._store.reviewers)

    # ------------------------------------------------------------------------------------------------ files

    async def _picture(self, request: web.Request) -> web.StreamResponse:
        try:
            found = await self._on_disk(self._shown, request.match_info["key"])
        except KeyError:
            found = None
        if found is None:
            raise web.HTTPNotFound(text="no picture")
        content, kind = found
        return web.Response(body=content, content_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    def _shown(self, key: str) -> tuple[bytes, str] | None:
        """As `shown`, once for the page and the picture of it."""
        if self._picture_held[0] != key:
            self._picture_held = (key, shown(self._stage.get(key).image, PICTURE_SIDE))
        return self._picture_held[1]

    async def _static(self, request: web.Request) -> web.StreamResponse:
        kind = STATIC.get(request.match_info["name"])
        if kind is None:
            raise web.HTTPNotFound
        text = self._pages.static(request.match_info["name"])
        return web.Response(text=text, content_type=kind, headers={"Cache-Control": "no-cache"})

    # ------------------------------------------------------------------------------------------------ writes

    async def _decide(self, request: web.Request) -> web.StreamResponse:
        sent = await _json(request)
        try:
            decision, base = _decision(sent, request[ANNOTATOR])
        except (KeyError, ValueError, TypeError) as error:
            raise web.HTTPBadRequest(text=f"not a decision: {error!r}") from error
        stored = await self._on_disk(self._save, decision, base)
        if isinstance(stored, str):
            return web.json_response({"kind": "refused", "message": stored}, status=422)
        return web.json_response({"version": stored.version, "next": f"/next?after={stored.key}"})

    def _save(self, decision: Decision, base: int) -> Decision | str:
        """As stored, or what is wrong with it."""
        if self._stage.contents.get(decision.key) != decision.content:
            raise Conflict(
                "replaced", "This candidate was replaced while you had it open. Your words are kept as a draft: load the page again."
            )
        shown_now = self._stage.get(decision.key)
        wrong = complaint(decision, Words(shown_now.question, shown_now.answer, shown_now.aliases))
        return wrong or self._store.save(decision, base)

    async def _draft(self, request: web.Request) -> web.StreamResponse:
        sent = await _json(request)
        try:
            key, content, edited = str(sent["key"]), str(sent["content"]), int(sent["edited"])
            body = {name: _text(sent["body"][name]) for name in ("question", "answer", "aliases", "note")}
        except (KeyError, ValueError, TypeError) as error:
            raise web.HTTPBadRequest(text=f"not a draft: {error!r}") from error
        if key not in self._stage.contents:
            raise web.HTTPNotFound(text="there is no such candidate in this version of the stage")
        saved = await self._on_disk(self._store.save_draft, key, request[ANNOTATOR], content, edited, body)
        return web.json_response({"saved": saved})


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        sent = await asyncio.wait_for(request.json(), DEADLINE_SECONDS)
    except ValueError as error:
        raise web.HTTPBadRequest(text="the request is not JSON") from error
    if not isinstance(sent, dict):
        raise web.HTTPBadRequest(text="the request is no JSON object")
    return sent


def _decision(sent: dict[str, Any], annotator: str) -> tuple[Decision, int]:
    """(decision, the version it was made on)."""
    identity = str(sent["id"])
    if not (16 <= len(identity) <= 64 and identity.isascii() and identity.isalnum()):
        raise ValueError("its id must have 16 to 64 letters and digits")
    verdict = Verdict(sent["verdict"])
    aliases = tuple(_text(sent.get("aliases", "")).splitlines())
    words = Words(_text(sent.get("question", "")), _text(sent.get("answer", "")), aliases).tidy()
    decision = Decision(
        id=identity,
        key=str(sent["key"]),
        annotator=annotator,
        content=str(sent["content"]),
        verdict=verdict,
        words=words if verdict is Verdict.EDIT else Words("", ""),
        reason=_text(sent.get("reason", "")) if verdict is Verdict.REJECT else "",
        note=_text(sent.get("note", "")).strip(),
        look=int(sent["look"]),
        seconds=max(0.0, min(float(sent.get("seconds", 0)), 86_400.0)),
    )
    return decision, int(sent["base"])


def _text(value: Any) -> str:
    """Text that SQLite and a file in UTF-8 can hold."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value.replace("\x00", "").encode("utf-8", "replace").decode()


def _brief(decision: Decision | None, store: Store) -> dict[str, Any] | None:
    """What undoing needs."""
    if decision is None:
        return None
    base = store.version(decision.key, decision.annotator)
    return {"key": decision.key, "content": decision.content, "look": decision.look, "base": base}
