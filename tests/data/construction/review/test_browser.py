"""The review in a real browser, before a real server process: keys, drafts, and what kill -9 leaves."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from mmsr_ray.data.construction.review.stage import content_of
from mmsr_ray.data.construction.review.store import Store
from mmsr_ray.data.construction.review.verdicts import REASONS, Decision, Verdict
from tests.browser import FOUND, Browser
from tests.data.construction.review.samples import candidate, hostile, make_run

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(FOUND is None, reason="no Chromium here")]
CANDIDATES = [candidate(0), candidate(1), candidate(2), hostile(3)]
FIRST, SECOND, THIRD, _ = (c.key for c in CANDIDATES)
SECONDS = 60.0


class Server:
    """`python -m mmsr_ray.data.construction.review`, to be killed and started again on the same port."""

    def __init__(self, run: Path) -> None:
        self.run = run
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: Process | None = None

    async def _command(self, *arguments: str) -> Process:
        command = (sys.executable, "-m", "mmsr_ray.data.construction.review", str(self.run), *arguments, "--port", str(self.port))
        return await asyncio.create_subprocess_exec(*command, stderr=PIPE)

    async def invite(self, *names: str) -> dict[str, str]:
        process = await self._command("invite", *names)
        _, told = await asyncio.wait_for(process.communicate(), SECONDS)
        assert process.returncode == 0, told
        return dict(re.findall(r"(\w+): (http\S+)", told.decode()))

    async def start(self) -> None:
        self._process = await self._command()
        async with asyncio.timeout(SECONDS), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(f"{self.address}/static/review.js") as answer:
                        assert answer.status == 200
                        return
                except aiohttp.ClientError:
                    await asyncio.sleep(0.1)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    def store(self) -> Store:
        return Store(self.run / "review.sqlite")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(make_run(tmp_path / "run", CANDIDATES))
    await made.start()
    yield made
    await made.kill()


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    (tmp_path / "profile").mkdir()
    return tmp_path / "profile"


def item(key: str) -> str:
    return f"document.readyState === 'complete' && location.pathname === '/item/{key}'"


def said(text: str) -> str:
    return f"document.getElementById('status').textContent.includes('{text}')"


BANNER = "document.getElementById('banner').textContent"
WAITING = f"{BANNER}.includes('kept in this browser and sent again')"
ANSWER = "document.getElementById('edit').elements.answer.value"


async def test_a_review_by_keyboard(server: Server, profile: Path) -> None:
    links = await server.invite("ann")
    async with Browser(profile) as tab:
        await tab.goto(links["ann"])
        await tab.wait(item(FIRST))
        await tab.key("?")
        assert await tab.run("document.getElementById('help').open")
        await tab.key("Escape")
        await tab.key("a")
        await tab.wait(item(SECOND))
        await tab.key("e")
        assert await tab.run("document.activeElement.name") == "question"
        await tab.run("document.getElementById('edit').elements.answer.select(); document.getElementById('edit').elements.answer.focus()")
        await tab.type("Oswin")
        await tab.key("Enter", modifiers=2)
        await tab.wait(item(THIRD))
        await tab.key("r")
        await tab.key("9")  # needs a note
        await tab.wait("document.activeElement.matches('dialog [name=note]')")
        await tab.key("Escape")
        await tab.wait("!document.getElementById('reject').open")
        await tab.key("r")
        await tab.key("3")
        await tab.wait(f"!({item(THIRD)}) && document.readyState === 'complete'")
        await tab.key("z")  # takes the rejection back and shows it
        await tab.wait(item(THIRD))
        await tab.key("k")
        await tab.wait(item(SECOND))
        await tab.key("ArrowRight")
        await tab.wait(item(THIRD))
        await tab.key("r")
        await tab.key("4")
        await tab.wait(f"!({item(THIRD)}) && document.readyState === 'complete'")
        assert "alert" in await tab.run("document.querySelector('h1').textContent")  # the hostile one: as text
        assert await tab.run("document.querySelectorAll('svg').length") == 0
        assert tab.said == []  # neither errors nor anything that the policy of the page had to stop
    store = server.store()
    told = [(d.key, d.verdict, d.words.answer, d.reason) for d in store.history()]
    assert told == [
        (FIRST, Verdict.ACCEPT, "", ""),
        (SECOND, Verdict.EDIT, "Oswin", ""),
        (THIRD, Verdict.REJECT, "", REASONS["3"]),
        (THIRD, Verdict.WITHDRAWN, "", ""),
        (THIRD, Verdict.REJECT, "", REASONS["4"]),
    ]
    store.close()


async def test_nothing_is_lost_when_server_and_browser_are_killed(server: Server, profile: Path) -> None:
    links = await server.invite("ann")
    async with Browser(profile) as tab:
        await tab.goto(links["ann"])
        await tab.key("a")
        await tab.wait(item(SECOND))
        await tab.key("e")
        await tab.run("document.getElementById('edit').elements.answer.focus()")
        await tab.type("draft one ")
        await tab.wait(said("draft saved"))
        await tab.kill()
    async with Browser(profile) as tab:  # the browser died: the draft is there
        await tab.goto(links["ann"])  # Chromium writes cookies every 30 s: this one may be lost
        await tab.wait(item(SECOND))
        await tab.wait(said("draft"))
        assert "draft one" in await tab.run(ANSWER)
        await tab.run("window.fetch = () => Promise.reject(new Error('no network'))")
        await tab.run("document.getElementById('edit').elements.answer.focus()")
        await tab.type("and two ")
        await tab.wait(said("kept in this browser"))
        await tab.reload()  # nothing of it had reached the server
        assert "and two" in await tab.run(ANSWER)
        await tab.wait(said("draft saved"))
        await server.kill()
        await tab.key("Enter", modifiers=2)  # a decision while the server is dead
        await tab.wait(WAITING)
        assert await tab.run("location.pathname") == f"/item/{SECOND}"
        await server.start()
        await tab.wait(item(THIRD))  # sent by itself
        await server.kill()
        await tab.key("a")
        await tab.wait(WAITING)
        await server.start()
        await tab.reload()  # a reload while a decision waits
        await tab.wait(f"!({item(THIRD)})")
    store = server.store()
    first, second, third = store.history()
    assert (first.key, first.verdict) == (FIRST, Verdict.ACCEPT)
    assert (second.key, second.verdict, second.version) == (SECOND, Verdict.EDIT, 1)
    assert "draft one" in second.words.answer and "and two" in second.words.answer
    assert (third.key, third.verdict) == (THIRD, Verdict.ACCEPT)
    assert store.draft(SECOND, "ann") is None
    store.close()


async def test_a_second_window_is_told_and_keeps_its_words(server: Server, profile: Path) -> None:
    links = await server.invite("ann")
    async with Browser(profile) as tab:
        await tab.goto(links["ann"])
        await tab.key("e")
        await tab.run("document.getElementById('edit').elements.answer.focus()")
        await tab.type("mine ")
        store = server.store()
        store.save(Decision("f" * 16, FIRST, "ann", content_of(CANDIDATES[0]), Verdict.ACCEPT), 0)  # the other window
        await tab.key("Enter", modifiers=2)
        await tab.wait(f"{BANNER}.includes('in another window')")
        assert [d.verdict for d in store.history()] == [Verdict.ACCEPT]
        await tab.wait(said("draft saved"))
        await tab.reload()
        await tab.wait("document.querySelector('.own').textContent.includes('accepted')")
        assert "mine" in await tab.run(ANSWER)
        store.close()


async def test_it_fits_a_phone_and_shows_focus(server: Server, profile: Path) -> None:
    links = await server.invite("ann")
    async with Browser(profile) as tab:
        await tab.look(width=360, height=740, phone=True)
        await tab.goto(links["ann"])
        for address in (f"/item/{FIRST}", f"/item/{CANDIDATES[3].key}", "/overview"):
            await tab.goto(server.address + address)
            assert await tab.run("document.documentElement.scrollWidth <= innerWidth"), address
        await tab.goto(f"{server.address}/item/{FIRST}")
        sizes = await tab.run("[...document.querySelectorAll('footer button')].map((b) => [b.offsetWidth, b.offsetHeight])")
        assert min(width for width, _ in sizes) >= 44 and min(height for _, height in sizes) >= 44
        await tab.key("Tab")
        assert await tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        light = await tab.run("getComputedStyle(document.body).backgroundColor")
        await tab.look(width=360, height=740, phone=True, dark=True)
        assert await tab.run("getComputedStyle(document.body).backgroundColor") != light
        await tab.run("document.querySelector('[data-do=accept]').click()")
        await tab.wait(item(CANDIDATES[3].key))  # the next that was open and is not decided
