"""The pages of a review as HTML. Pure.

Promise: whatever a candidate holds is text on the page, and no page grows without bound: the web page is cut at PAGE_CHARS, and
says so; the first ATTEMPTS rollouts are shown, with HITS results of a search.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import ChoiceLoader, PackageLoader

from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.data.construction.review.agreement import Overview
from mmsr_ray.data.construction.review.stage import attempts_of
from mmsr_ray.data.construction.review.verdicts import MAX_ANSWER, MAX_NOTE, MAX_QUESTION, REASONS, Decision
from mmsr_ray.observability.pages import environment
from mmsr_ray.observability.pictures import data_uri

PAGE_CHARS, ATTEMPTS, HITS = 30_000, 16, 10
MARKS = 50  # places of the answer that are marked in a page


class Pages:
    def __init__(self, stage: str) -> None:
        made = environment(data_uri)
        made.loader = ChoiceLoader(
            [PackageLoader("mmsr_ray.data.construction.review", "templates"), PackageLoader("mmsr_ray.observability", "templates")]
        )
        made.globals |= {"stage": stage, "reasons": REASONS, "limits": {"question": MAX_QUESTION, "answer": MAX_ANSWER, "note": MAX_NOTE}}
        self._environment = made

    def item(
        self,
        candidate: Candidate,
        state: dict[str, Any],
        own: Decision | None,
        earlier: Sequence[Decision],
        *,
        picture: bool,
    ) -> str:
        text = candidate.page_text
        return self._render(
            "item.html.jinja",
            me=state["annotator"],
            state=state,
            candidate=candidate,
            picture=picture,
            page=marked(text[:PAGE_CHARS], candidate.answers),
            left_out=max(0, len(text) - PAGE_CHARS),
            attempts=attempts_of(candidate.attempts),
            shown=ATTEMPTS,
            hits=HITS,
            own=own,
            earlier=earlier,
        )

    def done(self, me: str, overview: Overview, path: Sequence[str]) -> str:
        return self._render("done.html.jinja", me=me, overview=overview, previous=f"/item/{path[-1]}" if path else None)

    def overview(self, me: str, overview: Overview) -> str:
        return self._render("overview.html.jinja", me=me, overview=overview)

    def stranger(self) -> str:
        return self._render("stranger.html.jinja", me=None)

    def static(self, name: str) -> str:
        """review.css or review.js."""
        return self._render(f"{name}.jinja")

    def _render(self, template: str, **values: Any) -> str:
        return self._environment.get_template(template).render(**values)


def marked(text: str, answers: Sequence[str]) -> list[tuple[str, bool]]:
    """The text in parts, each with whether it is one of the answers; at most MARKS are."""
    wanted = sorted({answer for answer in answers if answer.strip()}, key=len, reverse=True)
    if not wanted:
        return [(text, False)]
    parts, end = [], 0
    for count, found in enumerate(re.finditer(r"(?<!\w)(?:" + "|".join(map(re.escape, wanted)) + r")(?!\w)", text, re.IGNORECASE)):
        if count == MARKS:
            break
        parts += [(text[end : found.start()], False), (found.group(), True)]
        end = found.end()
    return [*parts, (text[end:], False)]
