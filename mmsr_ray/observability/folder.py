"""A folder of pages with pictures beside them: what the browser of a run and the comparison of two share.

Promise: a picture lies there once, by the hash of its content; a file appears whole or not at all; a block of one episode stays
within BLOCK_BYTES, by cutting its texts and saying so; long lists are cut into pages of ROWS. The one script that a page
may run is ours, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from mmsr_ray.observability.pages import environment
from mmsr_ray.observability.pictures import shown

PICTURES = "pictures"
ROWS = 1_000  # of one page of a list
BLOCK_BYTES = 100_000  # of one episode in a page
MOST_CHARS = (20_000, 3_000, 300, 0)  # of a turn: the first that keeps the episode within BLOCK_BYTES; 0: its turns are left out
SIDES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}
SIDE = 640  # pixels of a question's picture: shown smaller, opened as large


class PageFolder:
    """Pages of the templates of this room; `names` are known to all of them."""

    def __init__(self, folder: Path, **names: Any) -> None:
        self.path = folder
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        script = template("filter.js.jinja")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        self._environment: Environment = environment(self._picture)
        self._environment.globals |= {"script": Markup(script), "script_hash": f"sha256-{digest}", **names}

    def render(self, name: str, by: str, **values: Any) -> None:
        """Write the page `name` by the template `by`."""
        self.put(name, self._environment.get_template(by).render(**values))

    def block(self, by: str, **values: Any) -> Markup:
        """One episode by a template that takes `most`, the characters of a turn."""
        block = ""
        for most in MOST_CHARS:
            block = self._environment.get_template(by).render(most=most, **values)
            if len(block.encode()) <= BLOCK_BYTES:
                break
        return Markup(block)

    def put(self, name: str, content: str | bytes) -> None:
        partial = self.path / f"{name}.partial"
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(self.path / name)

    def _picture(self, picture: bytes | None, side: int = SIDE) -> str | None:
        """Write the picture, unless it is there, and return its address from a page."""
        found = shown(picture, side)
        if found is None:
            return None
        content, kind = found
        name = f"{PICTURES}/{hashlib.sha256(content).hexdigest()[:24]}.{SIDES[kind]}"
        if not (self.path / name).is_file():
            self.put(name, content)
        return name


def template(name: str) -> str:
    return (files("mmsr_ray.observability") / "templates" / name).read_text()


def page_name(stem: str, number: int) -> str:
    """File of the page `number`, counted from 0."""
    return f"{stem}.html" if number == 0 else f"{stem}.{number + 1}.html"


def leaf(stem: str, number: int, count: int) -> dict[str, Any]:
    """The way from one page of a list to the next."""
    return {
        "number": number + 1,
        "count": count,
        "newer": page_name(stem, number - 1) if number > 0 else None,
        "older": page_name(stem, number + 1) if number + 1 < count else None,
    }


def parts(stem: str, listed: Sequence[Any]) -> Iterator[tuple[int, Sequence[Any], dict[str, Any]]]:
    """(page, its part of the list, the way to others); one empty page for an empty list."""
    count = max(1, -(-len(listed) // ROWS))
    for number in range(count):
        yield number, listed[number * ROWS : (number + 1) * ROWS], leaf(stem, number, count)
