"""The figures of a built set: taxonomy, needs, sources, lengths of questions and answers.

Promise: from counts to PNG files, on white ground, because a card shows them on whatever page it lies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmsr_ray.data.construction.statistics import Statistics, counts_of, most_frequent
from mmsr_ray.observability.drawing import COLOURS, INK, STYLE

DPI = 150
MOST = 15  # values of their own in one figure; the others are one bar
LONGEST = 40  # words; longer texts are drawn there

TITLES = {
    "taxonomy": "Knowledge categories",
    "need": "What a question needs",
    "source": "Sites that the pictures come from",
    "question_words": "Words of a question",
    "answer_words": "Words of an answer",
}


def draw(folder: Path, splits: Mapping[str, Statistics]) -> dict[str, Path]:
    """Write one PNG for each of TITLES; title -> file. Nothing without splits."""
    if not splits:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    files = {title: folder / f"{name}.png" for name, title in TITLES.items()}
    for name, title in TITLES.items():
        counts = {split: getattr(statistics, name) for split, statistics in splits.items()}
        with mpl.rc_context(STYLE):
            figure = _histogram(counts, title) if name.endswith("words") else _bars(counts)
            figure.savefig(files[title], dpi=DPI, facecolor="white", metadata={"Software": None})
    return files


def _bars(counts: Mapping[str, Counter[str]]) -> Figure:
    """One bar a value, cut into the splits."""
    names = most_frequent(counts.values(), MOST)
    figure = Figure(figsize=(6.4, 0.9 + 0.28 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    left = [0] * len(names)
    for (split, of_split), colour in zip(counts.items(), COLOURS, strict=False):
        widths = counts_of(names, of_split)
        axes.barh(range(len(names)), widths, left=left, height=0.7, color=colour, label=split)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, total in enumerate(left):
        axes.annotate(f"{total:,}", (total, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("questions")
    axes.set_xlim(0, 1.12 * max([1, *left]))
    if len(counts) > 1:
        figure.legend(loc="outside upper right", ncols=len(counts), fontsize=8)
    return figure


def _short(name: str) -> str:
    return name.replace("_", " ") if len(name) <= 40 else f"{name[:39]}…"


def _histogram(counts: Mapping[str, Counter[int]], title: str) -> Figure:
    figure = Figure(figsize=(6.4, 2.7), layout="constrained")
    axes = figure.add_subplot()
    lengths = [length for of_split in counts.values() for length in of_split]
    shortest, longest = min(LONGEST, *lengths), min(LONGEST, max(lengths))
    bottom = [0] * (longest + 1 - shortest)
    for (split, of_split), colour in zip(counts.items(), COLOURS, strict=False):
        heights = [0] * len(bottom)
        for length, count in of_split.items():
            heights[min(length, longest) - shortest] += count
        axes.bar(range(shortest, longest + 1), heights, bottom=bottom, width=0.9, color=colour, label=split)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    axes.set_xlabel(title.lower() + (f" ({LONGEST}: that many or more)" if longest == LONGEST else ""))
    axes.set_ylabel("questions")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_axisbelow(True)
    axes.grid(axis="y", alpha=0.15, color=INK, linewidth=0.6)
    if len(counts) > 1:
        figure.legend(loc="outside upper right", ncols=len(counts), fontsize=8)
    return figure
