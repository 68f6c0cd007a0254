"""The main text of an HTML page, by trafilatura, on threads that cannot pile up.

Promise: `Extractor.extract` ends by its deadline or says that the page is to blame, whatever the page holds. A thread
cannot be stopped, so the work itself is bounded: markup is cut to a length that the slowest known pages take seconds
for, and there are `THREADS` threads, of which one that runs on keeps its place until it is done.
"""

from __future__ import annotations

import asyncio
import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.foreign import TITLE_CHARS, clean_line
from mmsr_ray.tools.http import public
from mmsr_ray.tools.providers.decoding import decode
from mmsr_ray.types import ToolFailure

THREADS = 4
HTML_CHARS = 400_000  # that are parsed; ten times the text that is used, and at worst 8 s of work
_BLIND = ("script", "style", "svg", "noscript", "template")  # elements without text for a reader


@dataclass(frozen=True, slots=True)
class Text:
    title: str
    text: str


class Extractor:
    """For one event loop. Threads start when they are needed."""

    def __init__(self) -> None:
        _library()  # now: the first page's seconds are not for it
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="extract")
        self._free = asyncio.Semaphore(THREADS)

    async def extract(self, html: bytes, charset: str, url: str, seconds: float) -> Text:
        """Raises ProviderError (NO_RESULTS) for a page without text or one that takes longer than `seconds`.

        Waits for a thread as long as the caller does; `seconds` count from when it is there.
        """
        await self._free.acquire()
        work = asyncio.get_running_loop().run_in_executor(self._threads, main_text, html, charset, url)
        work.add_done_callback(self._done)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(work)
        except TimeoutError:
            raise ProviderError(ToolFailure.NO_RESULTS, f"{public(url)}: its text is not extracted in {seconds:g} s") from None

    def _done(self, work: asyncio.Future[Text]) -> None:
        self._free.release()
        if not work.cancelled():
            work.exception()  # seen: the caller may have left


def main_text(html: bytes, charset: str, url: str) -> Text:
    """Title and main text of the page at `url`. `charset` is what its server declared, "" for nothing.

    Raises ProviderError (NO_RESULTS) where there is none.
    """
    page = decode(html, charset)
    try:
        found = _library().bare_extraction(slim(page, HTML_CHARS), url=url, with_metadata=True, include_comments=False)
    except Exception as error:  # a foreign parser on a hostile page: whatever it stumbles over is that page's trouble
        raise ProviderError(ToolFailure.NO_RESULTS, f"{public(url)}: {type(error).__name__} in the extraction of its text") from None
    text = str(found.text or "") if found is not None else ""
    if found is None or not text.strip():
        raise ProviderError(ToolFailure.NO_RESULTS, f"{public(url)}: no text found in the page")
    return Text(clean_line(found.title, TITLE_CHARS), text)


def _library() -> Any:
    """trafilatura: slow to import, and only one reader wants it."""
    return importlib.import_module("trafilatura")


def slim(html: str, limit: int) -> str:
    """At most `limit` characters of markup. A longer page first loses its scripts, styles and comments."""
    if len(html) <= limit:
        return html
    html = _without(html, "<!--", "-->")
    for element in _BLIND:
        html = _without(html, f"<{element}", f"</{element}")
    return html[:limit]


def _without(html: str, opening: str, closing: str) -> str:
    """`html` without what lies between the marks; what is never closed goes to the end. One pass, whatever the page."""
    lowered = html.lower() if html.isascii() else html.translate(_ASCII_LOWER)  # of the same length
    kept: list[str] = []
    at = 0
    while (start := lowered.find(opening, at)) >= 0:
        kept.append(html[at:start])
        end = lowered.find(closing, start)
        if end < 0:
            return "".join(kept)
        at = end + len(closing)
        if closing.startswith("</"):
            at = lowered.find(">", at) + 1 or len(html)
    kept.append(html[at:])
    return "".join(kept)


_ASCII_LOWER = {c: c + 32 for c in range(ord("A"), ord("Z") + 1)}
