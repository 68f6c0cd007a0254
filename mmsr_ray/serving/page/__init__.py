"""The page on which people watch the agent think: three files, served as they are.

Promise: the browser runs our one script, loads nothing from elsewhere, and shows what models and the web wrote as text (the policy in
`HEADERS` holds it to that: no inline script, no HTML made of strings). The page needs `POST /v1/agent` beside it and nothing else.

Why not Gradio: it is not installed, needs a looser content policy and megabytes of scripts, and would put a server session between
the page and the stream that every other client reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_FILES = {
    "/": ("page.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
}
PATHS = tuple(_FILES)


@dataclass(frozen=True, slots=True)
class PageFile:
    """To be answered with `HEADERS`, as UTF-8."""

    body: bytes
    media_type: str


def page_file(path: str) -> PageFile:
    """What a GET of one of `PATHS` answers. Raises KeyError for another path."""
    name, media_type = _FILES[path]
    return PageFile((files(__name__) / name).read_bytes(), media_type)
