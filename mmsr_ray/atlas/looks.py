"""What an entity looks like, how it is drawn, and how a picture is recognised again.

A look is a shape in one colour with a badge in a second on a ground of a third. `draw` varies position, scale,
colour and noise by seed; `recognise` inverts `draw` for any picture that `draw` can make (tested), which is all the
reverse image search of Atlas needs.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

SIDE = 56  # pixels; 4 x 4 patches of 14
PALETTE = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 200),
    "yellow": (240, 210, 40),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "purple": (150, 50, 170),
    "cyan": (60, 200, 220),
}
COLOURS = tuple(PALETTE)
SHAPES = ("disc", "square", "triangle", "diamond", "cross", "bar")
_RGB = np.array([PALETTE[c] for c in COLOURS], dtype=np.int32)


@dataclass(frozen=True, slots=True, order=True)
class Look:
    shape: str
    body: str
    ground: str
    badge: str

    def distance(self, other: Look) -> int:
        """Number of features that differ."""
        mine, theirs = (self.shape, self.body, self.ground, self.badge), (other.shape, other.body, other.ground, other.badge)
        return sum(a != b for a, b in zip(mine, theirs, strict=True))


def all_looks() -> list[Look]:
    """Every look whose three colours differ: 2,016 of them."""
    return [
        Look(shape, body, ground, badge)
        for shape in SHAPES
        for body in COLOURS
        for ground in COLOURS
        for badge in COLOURS
        if len({body, ground, badge}) == 3
    ]


def _outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    third = r * 0.4
    return {
        "square": [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)],
        "triangle": [(x, y - r), (x + r, y + r), (x - r, y + r)],
        "diamond": [(x, y - r), (x + r, y), (x, y + r), (x - r, y)],
        "bar": [(x - r, y - third), (x + r, y - third), (x + r, y + third), (x - r, y + third)],
        "cross": [
            (x - third, y - r), (x + third, y - r), (x + third, y - third), (x + r, y - third), (x + r, y + third), (x + third, y + third),
            (x + third, y + r), (x - third, y + r), (x - third, y + third), (x - r, y + third), (x - r, y - third), (x - third, y - third),
        ],
    }[shape]  # fmt: skip


def _paint(look: Look, x: float, y: float, r: float, side: int) -> np.ndarray:
    picture = Image.new("RGB", (side, side), PALETTE[look.ground])
    pen = ImageDraw.Draw(picture)
    if look.shape == "disc":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=PALETTE[look.body])
    else:
        pen.polygon(_outline(look.shape, x, y, r), fill=PALETTE[look.body])
    b = r * 0.3
    pen.ellipse((x - b, y - b, x + b, y + b), fill=PALETTE[look.badge])
    return np.asarray(picture, dtype=np.float32)


def draw(look: Look, seed: int, side: int = SIDE) -> bytes:
    """PNG of one view of the look. The seed moves, scales, tints and adds noise to it."""
    rng = np.random.default_rng(seed)
    unit = side / SIDE
    x, y = (28 + rng.uniform(-4, 4)) * unit, (28 + rng.uniform(-4, 4)) * unit
    r = rng.uniform(18, 23) * unit
    pixels = _paint(look, x, y, r, side)
    pixels = pixels * rng.uniform(0.92, 1.0) + rng.uniform(-8, 8, size=3) + rng.normal(0, 5, size=pixels.shape)
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, format="PNG")
    return out.getvalue()


def _quantise(pixels: np.ndarray) -> np.ndarray:
    return ((pixels[:, :, None, :].astype(np.int32) - _RGB) ** 2).sum(-1).argmin(-1)


def _crop(mask: np.ndarray) -> np.ndarray:
    """The mask's bounding square scaled to 16 x 16, so that place and size do not matter but proportions do."""
    ys, xs = np.nonzero(mask)
    cy, cx = (ys.min() + ys.max()) / 2, (xs.min() + xs.max()) / 2
    half = max(np.ptp(ys), np.ptp(xs)) / 2 + 0.5
    box = (cx + 0.5 - half, cy + 0.5 - half, cx + 0.5 + half, cy + 0.5 + half)
    small = Image.fromarray(mask.astype(np.uint8) * 255).resize((16, 16), Image.Resampling.BOX, box=_inside(box, mask.shape))
    return np.asarray(small) > 127


def _inside(box: tuple[float, float, float, float], shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(shape[1])), min(box[3], float(shape[0]))


@lru_cache(maxsize=1)
def _templates() -> dict[str, np.ndarray]:
    probe = {s: _paint(Look(s, "red", "white", "black"), 28, 28, 21, SIDE) for s in SHAPES}
    return {s: _crop(_quantise(p) != COLOURS.index("white")) for s, p in probe.items()}


def recognise(data: bytes) -> Look | None:
    """The look in a picture, or None where there is none. Raises OSError on bytes that are no picture."""
    with Image.open(io.BytesIO(data)) as opened:
        pixels = np.asarray(opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    index = _quantise(pixels)
    border = np.concatenate([index[:2].ravel(), index[-2:].ravel(), index[:, :2].ravel(), index[:, -2:].ravel()])
    ground = int(np.bincount(border, minlength=len(COLOURS)).argmax())
    centre = index[16:40, 16:40]
    counts = np.bincount(index.ravel(), minlength=len(COLOURS))
    counts[ground] = 0
    body = int(counts.argmax())
    inner = np.bincount(centre.ravel(), minlength=len(COLOURS))
    inner[[ground, body]] = 0
    badge = int(inner.argmax())
    if counts[body] < 40 or inner[badge] < 12:
        return None
    mask = (index == body) | (index == badge)
    crop = _crop(mask)
    shape = max(SHAPES, key=lambda s: float((crop & _templates()[s]).sum() / (crop | _templates()[s]).sum()))
    return Look(shape, COLOURS[body], COLOURS[ground], COLOURS[badge])
