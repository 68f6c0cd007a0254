"""How every figure of a page looks, and how it becomes markup.

Promise: no display, no global state of pyplot, no formulas read out of labels. Text and axes take the page's text colour, so
that one picture reads on light and on dark ground.
"""

from __future__ import annotations

import io
from typing import Any

from cycler import cycler
from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour until the SVG is written
COLOURS = ["#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a855f7", "#64748b"]  # seen on white and on near-black
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a label with two dollar signs is a label
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.prop_cycle": cycler(color=COLOURS),
}


def markup(figure: Figure) -> str:
    """SVG to stand inside HTML: no XML head, no metadata, no fixed size."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
