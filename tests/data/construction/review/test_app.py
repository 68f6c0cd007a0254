"""The review over HTTP: who may write, what a page shows, what a write answers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, CookieJar
from aiohttp.test_utils import TestServer

from mmsr_ray.data.construction.review import access
from mmsr_ray.data.construction.review.app import MOST_BYTES, Review
from mmsr_ray.data.construction.review.pages import MARKS, PAGE_CHARS, marked
from mmsr_ray.data.construction.review.stage import Stage
from mmsr_ray.data.construction.review.store import Store
from mmsr_ray.data.construction.review.verdicts import REASONS, ReviewError, Verdict
from mmsr_ray.transactions import transaction
from tests.data.construction.review.samples import candidate, hostile, make_run
from tests.observability.episodes import Tags

ONE, HOSTILE = candidate(0), hostile(1)


class Site:
    """The app, its store, and a browser's worth of cookies for each annotator."""

    def __init__(self, store: Store, stage: Stage, server: TestServer) -> None:
        self.store, self.stage, self.server = store, stage, server
        self.clients: list[ClientSession] = []
        self.tokens: dict[str, str] = {}

    async def enter(self, name: str | None) -> ClientSession:
        client = ClientSession(self.server.make_url("/"), cookie_jar=CookieJar(unsafe=True))
        self.clients.append(client)
        if name is not None:
            self.tokens[name] = access.invite(self.store, name)
            answer = await client.get(f"/enter/{self.tokens[name]}", allow_redirects=False)
            assert (answer.status, answer.headers["Location"]) == (303, "/")
        return client

    def form(self, name: str) -> dict[str, str]:
        return {access.HEADER: access.form_token(self.tokens[name])}

    def decision(self, key: str = ONE.key, verdict: str = "accept", **more: Any) -> dict[str, Any]:
        number = len(self.store.history())
        sent = {"id": f"{number:016d}", "key": key, "content": self.stage.contents[key], "look": 1, "base": 0, "verdict": verdict}
        return {**sent, "note": "", "seconds": 1.5, **more}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    run = make_run(tmp_path, [ONE, HOSTILE, candidate(2)])
    stage, store = Stage(run / "05_balance.parquet"), Store(run / "review.sqlite")
    store.begin(stage.contents, 2)
    server = TestServer(Review(store, stage, 0).app())
    await server.start_server()
    made = Site(store, stage, server)
    yield made
    for client in made.clients:
        await client.close()
    await server.close()
    store.close()
    stage.close()


def bytes_of(run: Path) -> bytes:
    """The review's file and its journals."""
    return b"".join(file.read_bytes() for file in run.glob("review.sqlite*"))


PATHS = ["/", "/next", "/overview", f"/item/{ONE.key}", f"/picture/{ONE.key}", "/enter/guess"]


@pytest.mark.parametrize("path", PATHS)
async def test_strangers_see_nothing(site: Site, path: str) -> None:
    answer = await (await site.enter(None)).get(path)
    text = await answer.text()
    assert answer.status == 401
    assert "by your own link" in text
    assert ONE.answer not in text


async def test_a_write_needs_the_cookie_and_our_own_page(site: Site) -> None:
    ann, stranger = await site.enter("ann"), await site.enter(None)
    good = site.form("ann")
    assert (await stranger.post("/decide", json=site.decision(), headers=good)).status == 401
    foreign = [{}, {access.HEADER: "guess"}, {access.HEADER: "gü"}, {**good, "Origin": "https://evil.example"}, {**good, "Origin": "null"}]
    for headers in foreign:
        for path in ("/decide", "/draft"):
            assert (await ann.post(path, json=site.decision(), headers=headers)).status == 403
    assert site.store.history() == []
    own = {**good, "Origin": f"http://{site.server.host}:{site.server.port}"}
    assert (await ann.post("/decide", json=site.decision(), headers=own)).status == 200


async def test_tokens_are_not_in_the_file_and_a_new_link_ends_the_old(site: Site, tmp_path: Path) -> None:
    ann = await site.enter("ann")
    assert (await ann.get("/overview")).status == 200
    data = bytes_of(tmp_path)
    assert site.tokens["ann"].encode() not in data
    assert access.hashed(site.tokens["ann"]).encode() in data
    access.invite(site.store, "ann")
    assert (await ann.get("/overview")).status == 401
    with pytest.raises(ReviewError, match="cannot be an annotator's name"):
        access.invite(site.store, "<script>")


async def test_hostile_text_stays_text_and_huge_pages_are_cut(site: Site) -> None:
    ann = await site.enter("ann")
    answer = await ann.get(f"/item/{HOSTILE.key}")
    text = await answer.text()
    assert answer.status == 200
    page = Tags(text)
    assert "svg" not in page.tags and page.tags.count("script") == 1
    assert ("src", "/static/review.js") in page.attributes
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("href", "src") and value]
    assert all(re.match(r"/|https://|data:image/|data:,", link) for link in links), links
    assert "{{ 7 * 7 }}" in text
    assert "The picture cannot be shown" in text
    assert f"{len(HOSTILE.page_text) - PAGE_CHARS} more characters are left out" in text
    assert len(text) < 10 * PAGE_CHARS
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "frame-ancestors 'none'" in policy
    assert (await ann.get(f"/picture/{HOSTILE.key}")).status == 404


async def test_a_page_shows_all_that_a_verdict_needs(site: Site) -> None:
    ann = await site.enter("ann")
    text = await (await ann.get(f"/item/{ONE.key}")).text()
    for wanted in (
        ONE.question,
        "<mark>Mira Oswin</mark>",
        ONE.page_url,
        "CC BY 4.0",
        "3 of 8 right",
        "text search",
        "architect of the Halden Bridge",
        "no results",
    ):
        assert wanted in text
    picture = await ann.get(f"/picture/{ONE.key}")
    assert (picture.content_type, await picture.read()) == ("image/png", ONE.image)


async def test_every_answer_says_what_a_browser_may_do(site: Site) -> None:
    ann = await site.enter("ann")
    for path in ("/overview", "/static/review.js", "/static/review.css", "/nowhere", "/item/none", "/static/../store.py", "/picture/none"):
        answer = await ann.get(path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff", path
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    cookie = (await ann.get(f"/enter/{site.tokens['ann']}", allow_redirects=False)).headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie


async def test_a_decision_is_saved_once_and_conflicts_are_told(site: Site) -> None:
    ann = await site.enter("ann")
    sent = site.decision(verdict="edit", question="Who  drew it? ", answer=" Oswin\ud800\x00", aliases="M. Oswin\n\nOswin\n")
    for _ in range(2):
        answer = await ann.post("/decide", json=sent, headers=site.form("ann"))
        assert (answer.status, await answer.json()) == (200, {"version": 1, "next": f"/next?after={ONE.key}"})
    (stored,) = site.store.history()
    assert (stored.annotator, stored.words.question, stored.words.answer, stored.words.aliases) == (
        "ann",
        "Who drew it?",
        "Oswin?",
        ("M. Oswin", "Oswin"),
    )
    answer = await ann.post("/decide", json=site.decision(), headers=site.form("ann"))
    assert (answer.status, (await answer.json())["kind"]) == (409, "stale")
    answer = await ann.post("/decide", json=site.decision(content="other"), headers=site.form("ann"))
    assert (answer.status, (await answer.json())["kind"]) == (409, "replaced")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"verdict": "reject", "reason": "bored"}, 422),
        ({"verdict": "reject", "reason": REASONS["9"]}, 422),
        ({"verdict": "edit", "question": ONE.question, "answer": ONE.answer, "aliases": "M. Oswin"}, 422),
        ({"verdict": "perhaps"}, 400),
        ({"id": "short"}, 400),
        ({"look": "x"}, 400),
        ({"note": 3}, 400),
        ({"note": "x" * 3_000}, 422),
        ({"note": "x" * MOST_BYTES}, 413),
    ],
)
async def test_what_cannot_be_decided_is_refused_and_not_saved(site: Site, change: dict[str, Any], status: int) -> None:
    ann = await site.enter("ann")
    answer = await ann.post("/decide", json=site.decision(**change), headers=site.form("ann"))
    assert answer.status == status, await answer.text()
    assert site.store.history() == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"key": 1}'])
async def test_nonsense_is_a_bad_request(site: Site, body: bytes) -> None:
    ann = await site.enter("ann")
    for path in ("/decide", "/draft"):
        assert (await ann.post(path, data=body, headers=site.form("ann"))).status == 400


async def test_a_dispute_shows_the_others_words_without_their_names(site: Site) -> None:
    ann, ben, zoe = [await site.enter(name) for name in ("ann", "ben", "zoe")]
    await ann.post(
        "/decide", json=site.decision(verdict="edit", question="Who drew it?", answer="Oswin", note="shorter"), headers=site.form("ann")
    )
    await ben.post("/decide", json=site.decision(verdict="reject", reason=REASONS["2"]), headers=site.form("ben"))
    shown = await zoe.get("/next")
    text = await shown.text()
    assert shown.url.path == f"/item/{ONE.key}"
    assert "Second look" in text and "shorter" in text and REASONS["2"] in text
    assert "ann" not in re.findall(r"\b(ann|ben)\b", text) and "ben" not in re.findall(r"\b(ann|ben)\b", text)
    for client in (ann, ben):
        assert "Second look" not in await (await client.get(f"/item/{ONE.key}")).text()
    answer = await zoe.post("/decide", json=site.decision(look=2), headers=site.form("zoe"))
    assert answer.status == 200
    overview = await (await zoe.get("/overview")).text()
    assert "<b>1</b> settled" in overview and "ann, ben" in overview


async def test_a_draft_is_kept_apart_for_each_and_comes_back(site: Site) -> None:
    ann, ben = await site.enter("ann"), await site.enter("ben")
    body = {"question": "Who?", "answer": "half an ans", "aliases": "", "note": ""}
    sent = {"key": ONE.key, "content": site.stage.contents[ONE.key], "edited": 7, "body": body}
    assert await (await ann.post("/draft", json=sent, headers=site.form("ann"))).json() == {"saved": True}
    assert await (await ann.post("/draft", json={**sent, "edited": 6}, headers=site.form("ann"))).json() == {"saved": False}
    assert "half an ans" in await (await ann.get(f"/item/{ONE.key}")).text()
    assert "half an ans" not in await (await ben.get(f"/item/{ONE.key}")).text()
    assert (await ann.post("/draft", json={**sent, "key": "none"}, headers=site.form("ann"))).status == 404


async def test_a_locked_file_is_told_as_busy_and_the_next_try_works(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = await site.enter("ann")
    site.store._db.execute("pragma busy_timeout = 50")
    other = Store(site.stage.path.parent / "review.sqlite")
    with transaction(other._db):
        answer = await ann.post("/decide", json=site.decision(), headers=site.form("ann"))
        assert (answer.status, (await answer.json())["kind"]) == (503, "busy")
    assert (await ann.post("/decide", json=site.decision(), headers=site.form("ann"))).status == 200
    assert other.history()[0].verdict is Verdict.ACCEPT
    other.close()


async def test_when_nothing_is_left_the_page_says_so(site: Site) -> None:
    ann = await site.enter("ann")
    for number, key in enumerate(site.stage.contents):
        await ann.post("/decide", json=site.decision(key, id=f"{number:016d}"), headers=site.form("ann"))
    assert "Nothing is left for you" in await (await ann.get("/")).text()


def test_answers_are_marked_as_whole_words() -> None:
    assert marked("Adam met ADA, Ada.", ["Ada", " "]) == [("Adam met ", False), ("ADA", True), (", ", False), ("Ada", True), (".", False)]
    assert marked("text", ["", " "]) == [("text", False)]
    many = marked("a " * 500, ["a"])
    assert sum(found for _, found in many) == MARKS
    assert "".join(part for part, _ in many) == "a " * 500
