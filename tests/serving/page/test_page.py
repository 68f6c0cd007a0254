"""The page in a real browser, before real streams: what is asked, what is shown, what is kept, what is refused."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from mmsr_ray.types import Need, Sample
from tests.browser import FOUND, Browser
from tests.serving.page.standin import HOSTILE, Standin

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(FOUND is None, reason="no Chromium here")]
CHOOSE = """(async (data, name, type) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  %s
})(%r, %r, %r)"""
BY_FILE = "const input = document.getElementById('file'); input.files = transfer.files; input.dispatchEvent(new Event('change'));"
BY_DROP = (
    "document.getElementById('drop').dispatchEvent(new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true }));"
)
BY_PASTE = "document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true, cancelable: true }));"
READY = "!!document.querySelector('#preview img')"
IDLE = "document.getElementById('stop').hidden"
RUN = "document.getElementById('run').innerText"


@pytest.fixture
async def service() -> AsyncIterator[Standin]:
    async with Standin() as service:
        yield service


@pytest.fixture
async def tab(service: Standin, tmp_path: Path) -> AsyncIterator[Browser]:
    async with Browser(tmp_path) as tab:
        await tab.look()
        await tab.goto(service.address + "/")
        yield tab


async def choose(tab: Browser, data: bytes, how: str = BY_FILE, kind: str = "image/png") -> None:
    await tab.run("document.getElementById('preview').replaceChildren()")
    await tab.run(CHOOSE % (how, base64.b64encode(data).decode(), "a picture", kind))
    await tab.wait(READY)


async def ask(tab: Browser, question: str, *, mode: str = "on_demand", wait: bool = True) -> None:
    await tab.run(f"document.getElementById('question').value = {question!r}")
    await tab.run(f"document.querySelector('[name=mode][value={mode}]').checked = true")
    await tab.run("document.getElementById('send').click()")
    if wait:
        await tab.wait(IDLE)


def of(service: Standin, need: Need) -> Sample:
    return next(sample for sample in service.world.samples("test", 40) if sample.need is need)


async def test_one_question_is_watched_to_its_answer_and_kept(service: Standin, tab: Browser) -> None:
    sample = of(service, Need.MIX)
    await choose(tab, sample.image, BY_DROP)
    await ask(tab, sample.question)
    assert service.asked == [{"question": sample.question, "image": _url(sample.image), "workflow": "on_demand"}]
    kinds = await tab.run("[...document.querySelectorAll('#run .steps > li')].map((step) => step.className)")
    assert kinds == ["reason", "search", "reason", "search", "reason", "answer"]
    assert await tab.run("document.querySelector('#run .answer').innerText.endsWith(%r)" % sample.answers[0])  # noqa: UP031
    assert await tab.run("document.querySelectorAll('#run .pictures img[src^=\"data:image/png\"]').length") >= 1
    links = await tab.run("[...document.querySelectorAll('#run .hits a')].map((link) => [link.href, link.rel])")
    assert links and all(href.startswith("https://atlas.example/") and "noopener" in rel for href, rel in links)
    facts = await tab.run("document.querySelector('#run .facts').innerText")
    assert all(word in facts for word in ("searches", "2", "cost", "$0", "version 0"))
    assert sample.answers[0] in await tab.run("document.getElementById('status').textContent")  # what a screen reader says
    await tab.reload()
    await tab.wait("document.querySelectorAll('#history li').length === 1")
    await tab.run("document.querySelector('#history .open').click()")
    assert await tab.run("document.querySelectorAll('#run .steps > li').length") == 6
    await tab.run("document.querySelector('#history li button:last-child').click()")
    await tab.wait("document.getElementById('history').hidden")
    assert tab.said == []


async def test_three_ways_side_by_side_on_screen_phone_and_in_the_dark(service: Standin, tab: Browser) -> None:
    sample = of(service, Need.MIX)
    await choose(tab, sample.image, BY_PASTE)
    await ask(tab, sample.question, mode="compare")
    assert {asked["workflow"] for asked in service.asked} == {"on_demand", "direct", "rag"}
    searches = await tab.run("[...document.querySelectorAll('.column')].map((column) => column.querySelectorAll('.search').length)")
    assert searches == [2, 0, 2]
    places = "[...document.querySelectorAll('.column')].map((column) => column.getBoundingClientRect().left)"
    assert len(set(await tab.run(places))) == 3
    light = await tab.run("getComputedStyle(document.body).backgroundColor")
    await tab.look(width=360, height=740, phone=True, dark=True)
    assert len(set(await tab.run(places))) == 1
    assert await tab.run("document.documentElement.scrollWidth") <= 360
    assert await tab.run("getComputedStyle(document.body).backgroundColor") != light
    assert await tab.run("document.getElementById('send').offsetHeight") >= 44


async def test_what_a_page_or_a_model_wrote_stays_text(service: Standin, tab: Browser) -> None:
    await choose(tab, of(service, Need.MIX).image)
    await ask(tab, "hostile")
    assert await tab.run("window.hacked") is None
    assert await tab.run("document.querySelector('#run .answer p:last-child').textContent") == HOSTILE
    assert await tab.run("document.querySelectorAll('#run .steps img, #run script').length") == 0  # neither from elsewhere nor SVG
    assert await tab.run("[...document.querySelectorAll('#run a')].map((link) => link.href)") == ["https://fine.example/a?b=%3Cc%3E"]
    assert await tab.run("document.documentElement.scrollWidth <= innerWidth")
    refused = "(() => { try { document.body.innerHTML = '<b>'; return false; } catch { return true; } })()"
    assert await tab.run(refused)  # the content policy, were a script of ours to try
    loaded = """new Promise((resolve) => {
      addEventListener("securitypolicyviolation", (event) => resolve(event.violatedDirective));
      document.body.append(Object.assign(document.createElement("img"), { src: "https://elsewhere.example/x.png" }));
    })"""
    assert await tab.run(loaded) == "img-src"


async def test_stop_goes_away_and_failures_are_said_in_words(service: Standin, tab: Browser) -> None:
    await ask(tab, "no picture")
    assert "picture" in await tab.run("document.getElementById('trouble').textContent")
    await choose(tab, of(service, Need.MIX).image)
    await ask(tab, "hang", wait=False)
    await tab.wait("!!document.querySelector('#run .busy')")
    await tab.key("Escape")
    await tab.wait(IDLE)
    assert "You stopped this run." in await tab.run(RUN)
    await asyncio.wait_for(service.left.wait(), 20)  # the server learned of it
    await ask(tab, "broken")
    assert "The engine is gone. Nothing was charged." in await tab.run(RUN)
    await ask(tab, "cut")
    assert "I begin and" in await tab.run(RUN) and "connection ended" in await tab.run(RUN)
    await tab.run("document.getElementById('access').open = true; document.getElementById('key').focus()")
    await tab.type("full")
    await ask(tab, "busy")
    assert "The service is full. Try again in 7 s." in await tab.run(RUN)
    await tab.run("document.getElementById('key').focus(); document.getElementById('key').select()")
    await tab.type("wrong")
    await ask(tab, "a stranger")
    assert "not known" in await tab.run(RUN)
    assert service.keys == ["", "", "", "full", "wrong"]
    assert await tab.run("sessionStorage.getItem('mmsr-key')") == "wrong" and await tab.run("localStorage.length") == 0


async def test_a_huge_picture_is_scaled_down_and_a_broken_one_refused(service: Standin, tab: Browser) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((4000, 1000), 40).save(buffer, format="PNG")
    await choose(tab, buffer.getvalue())
    await ask(tab, "hostile")
    kind, _, data = service.asked[0]["image"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (2048, 512)
    await tab.run(CHOOSE % (BY_FILE, base64.b64encode(b"no picture").decode(), "x", "image/png"))
    await tab.wait("document.getElementById('trouble').textContent.includes('no picture that this browser can read')")


async def test_only_the_last_runs_are_kept_and_all_can_be_deleted(service: Standin, tab: Browser) -> None:
    await choose(tab, of(service, Need.SEARCH_FREE).image)
    await tab.run("""(async () => {
      const request = indexedDB.open("mmsr-ray", 1);
      await new Promise((resolve) => { request.onsuccess = resolve; });
      const runs = request.result.transaction("runs", "readwrite").objectStore("runs");
      for (let id = 1; id <= 20; id++) runs.put({ id, at: id, question: `old ${id}`, picture: "data:,", columns: [] });
      request.result.close();
    })()""")
    await ask(tab, "hostile")
    await tab.wait("document.querySelectorAll('#history li').length === 20")
    words = await tab.run("document.getElementById('history').innerText")
    assert "hostile" in words and "old 2\n" in words and "old 1\n" not in words
    await tab.run("window.confirm = () => true")
    await tab.run("document.getElementById('forget').click()")
    await tab.wait("document.getElementById('history').hidden")


async def test_the_keyboard_is_enough(service: Standin, tab: Browser) -> None:
    names = []
    for _ in range(5):
        await tab.key("Tab")
        names.append(await tab.run("document.activeElement.id || document.activeElement.tagName + document.activeElement.value"))
    assert names == ["SUMMARYundefined", "file", "question", "INPUTon_demand", "send"]
    await choose(tab, of(service, Need.SEARCH_FREE).image)
    await tab.run("document.getElementById('question').focus()")
    await tab.type("hostile")
    await tab.key("Enter", modifiers=2)
    await tab.wait("!!document.querySelector('#run .answer')")
    unnamed = "[...document.querySelectorAll('button, input, textarea, a, img')].filter((part) => part.tagName === 'IMG'"
    unnamed += " ? !part.hasAttribute('alt') : !(part.labels?.length || part.textContent.trim() || part.ariaLabel)).length"
    assert await tab.run(unnamed) == 0


def _url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
