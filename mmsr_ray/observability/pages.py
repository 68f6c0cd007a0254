"""What the report and the browser share: the template environment, and how numbers, texts and links are written. Pure.

Promise: all text is escaped, and a link leads to http or https or nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mmsr_ray.evaluation.classes import BEHAVIOURS, ERRORS
from mmsr_ray.observability.progress import NEEDS

SUMMARY_CHARS = 1_500
LINK_CHARS = 2_000  # a longer address is shown as text, cut


def environment(picture: Callable[..., str | None]) -> Environment:
    """Templates of this room. `picture` makes an image source of (bytes or None, longest side in pixels), None for no picture."""
    made = Environment(
        loader=PackageLoader("mmsr_ray.observability", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "picture": picture,
        "number": number,
        "percent": percent,
        "link": link,
        "clip": clip,
        "usd": usd,
        "counts": counts,
        "span": span,
        "hundred": hundred,
        "points": points,
        "p_value": p_value,
        "figure": figure,
    }
    made.globals |= {"needs": NEEDS, "behaviours": BEHAVIOURS, "errors": ERRORS}
    return made


def number(value: Any, digits: int = 2) -> str:
    """A figure of a table; undefined ones are a dash."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def hundred(share: float | None) -> str:
    """A share in percent where the column says so."""
    return "–" if share is None else f"{100 * share:.1f}"


def points(difference: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return "–" if difference is None else f"{100 * difference:+.1f}".replace("-", "−")


def p_value(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def figure(value: float | None) -> str:
    """A quantity of any kind: whole ones without places."""
    return "–" if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"


def link(url: str) -> str | None:
    """The address if a browser may be sent there."""
    return url if url.startswith(("http://", "https://")) and len(url) <= LINK_CHARS else None


def clip(text: str, length: int = SUMMARY_CHARS) -> str:
    return text if len(text) <= length else text[:length] + " …"


def usd(value: float | None) -> str:
    """Four places below a dollar, two above."""
    return "–" if value is None else f"{value:.4f} USD" if abs(value) < 1 else f"{value:,.2f} USD"


def counts(kinds: Mapping[str, int]) -> str:
    """Failures by kind in words."""
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in kinds.items()) or "–"


def span(first: int, last: int) -> str:
    """Weight versions, from the first to the last."""
    return str(first) if first == last else f"{first}–{last}"
