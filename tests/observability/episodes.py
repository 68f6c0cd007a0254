"""Episodes to be shown, hostile ones among them, and a look at a page as a browser would take it."""

from __future__ import annotations

import hashlib
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from mmsr_ray.types import (
    Answer,
    ImageHit,
    ImageSearch,
    Malformed,
    Need,
    Outcome,
    Picture,
    Reward,
    Sample,
    SealedTokens,
    TextHit,
    TextSearch,
    ToolFailure,
    ToolKind,
    ToolResult,
    Trajectory,
    Turn,
)

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)>"
NONE = np.zeros(0, np.int32)
EMPTY = SealedTokens(NONE, NONE, NONE, NONE, np.zeros((0, 3), np.int32), ())


def png(colour: tuple[int, int, int], side: int = 56) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(out, format="PNG")
    return out.getvalue()


def episode(uid: str, need: Need, correct: bool, turns: tuple[Turn, ...] = (), picture: bytes = b"") -> tuple[Sample, Trajectory]:
    sample = Sample(uid, f"Who is {uid}?", picture or png((200, 30, 30)), ("Ada",), need=need)
    reward = Reward(float(correct), correct, True, 0)
    trajectory = Trajectory(uid, 0, "on_demand", sample.question, turns, Outcome.OK, "", "Ada" if correct else "Bob", EMPTY, reward)
    return sample, trajectory


def searching(uid: str) -> tuple[Sample, Trajectory]:
    thumbnail = png((10, 200, 10), 28)
    image = ToolResult(
        ToolKind.IMAGE, "sha", (ImageHit("Ada at work" + ATTACK, Picture(thumbnail, hashlib.sha256(thumbnail).hexdigest())),)
    )
    text = ToolResult(
        ToolKind.TEXT, "ada", (TextHit("javascript:alert(1)", ATTACK, "Bad"), TextHit("https://ada.example/a", "She wrote.", "Good"))
    )
    broken = ToolResult(ToolKind.TEXT, "more", failure=ToolFailure.TIMEOUT, detail="10 s")
    turns = (
        Turn(f"<reason>look{ATTACK}</reason>", ImageSearch(), 9, True, image),
        Turn("<reason>read</reason>", TextSearch("ada" + ATTACK), 9, True, text),
        Turn("again", TextSearch("more"), 9, True, broken),
        Turn("junk", Malformed("no tag" + ATTACK), 9, False),
        Turn("<answer>Ada</answer>", Answer("Ada"), 9, True),
    )
    return episode(uid, Need.MIX, True, turns)


class Tags(HTMLParser):
    """Tags and attributes as a browser would see them; void and foreign elements balance themselves."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
