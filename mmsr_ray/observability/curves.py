"""The pictures of a report: curves over training steps as inline SVG.

Promise: pure from records to markup; how it looks is `drawing`'s affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmsr_ray.observability.drawing import COLOURS, INK, STYLE, markup
from mmsr_ray.observability.progress import NEEDS

PARTS = ("generate", "tools", "idle", "learn", "sync")  # of a step's seconds: they sum to its total (algorithms.timing)
SMOOTH_FROM = 40  # steps; shorter runs are drawn as they are


@dataclass(frozen=True)
class Curve:
    title: str
    note: str
    svg: str  # markup of our own making


Series = Mapping[str, Sequence[float | None]]


def curves(records: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """From the records of metrics.jsonl, in order; a curve none of whose numbers exist is left out."""
    if not records:
        return []
    steps = [int(record["step"]) for record in records]
    needs = {label: column(records, "by_need", need) for need, label in NEEDS.items()}
    seconds = {name: column(records, "seconds", name) for name in (*PARTS, "rollout", "total")}
    plain = [
        ("Reward and accuracy", "means over the responses of a step", _columns(records, "reward", "accuracy", "format_ok"), (0.0, 1.0)),
        (
            "How much it searches",
            "calls: of the allowed calls; responses: share that searches at all",
            {
                "calls": column(records, "search_ratio_calls"),
                "responses": column(records, "search_ratio_responses"),
            },
            (0.0, 1.0),
        ),
        ("Searches by what the question needs", "calls per question; needed are free 0, image 1, text 1, mix 2", needs, (0.0, 2.05)),
        ("Length", "tokens of a whole response, pictures included", {"tokens": column(records, "length_mean")}, None),
        ("Speed", "sampled tokens a second, over the whole step", {"tokens/s": column(records, "tokens_per_second")}, None),
        ("Distance and spread of the policy", "KL to the warm-started policy; entropy per token", _columns(records, "kl", "entropy"), None),
        (
            "Health of the update",
            "clipped share; |log-prob of learner minus engine|",
            _columns(records, "clip_fraction", "mismatch_abs_mean"),
            None,
        ),
        ("Gradient", "norm before clipping", _columns(records, "grad_norm"), None),
        (
            "Tool calls",
            "calls of a step; searches that were asked of cache or service, and those that a service answered",
            _tools(records),
            None,
        ),
        ("Cost of the tools", "USD: of a step, and what cache and shared requests saved in it", _money(records), None),
        ("Seconds of a tool call", "half and 95 % of the calls of a step stay within", _seconds(records), None),
    ]
    drawn = [Curve(title, note, _lines(steps, series, limits)) for title, note, series, limits in plain if _exists(series)]
    if _exists({"total": seconds["total"]}):
        parts = _parts(seconds)
        note = "seconds, stacked"
        if "idle" in parts:
            note += "; waiting for a batch is split by what the runners do meanwhile: generate, wait for tools, nothing"
        drawn.insert(3, Curve("Where a step's time goes", note, _stack(steps, parts)))
    drawn[1:1] = _evaluated([record for record in records if record.get("evaluation")])
    return drawn


def _evaluated(records: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """One curve over the steps that were evaluated, a line for each workflow; none where no step was."""
    workflows = dict.fromkeys(name for record in records for name, row in record["evaluation"].items() if isinstance(row, Mapping))
    series = {workflow: column(records, "evaluation", workflow, "accuracy") for workflow in workflows}
    series |= {f"{workflow}, searches": column(records, "evaluation", workflow, "search_ratio_calls") for workflow in workflows}
    if not _exists(series):
        return []
    note = "held-out questions, greedy, while training went on: accuracy, and calls of the allowed calls"
    return [Curve("Evaluated while training", note, _lines([int(record["step"]) for record in records], series, (0.0, 1.0)))]


def _tools(records: Sequence[Mapping[str, Any]]) -> Series:
    names = {"calls": "calls", "asked": "searches_asked", "paid": "searches_paid"}
    return {label: column(records, "tools", name) for label, name in names.items()}


def _money(records: Sequence[Mapping[str, Any]]) -> Series:
    """Nothing where no service has a price."""
    series = {label: column(records, "tools", name) for label, name in {"cost": "cost_usd", "saved": "saved_usd"}.items()}
    return series if any(value for values in series.values() for value in values) else {}


def _seconds(records: Sequence[Mapping[str, Any]]) -> Series:
    return {
        name.replace("_", " "): column(records, "tools", "seconds", name) for name in ("image_p50", "image_p95", "text_p50", "text_p95")
    }


def column(records: Sequence[Mapping[str, Any]], *keys: str) -> list[float | None]:
    """The number under a path of keys in each record, None where there is none."""
    values: list[float | None] = []
    for record in records:
        value: Any = record
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        values.append(float(value) if isinstance(value, (int, float)) else None)
    return values


def smooth(values: Sequence[float | None], window: int) -> list[float | None]:
    """Mean over the last `window` numbers; None stays None."""
    out: list[float | None] = []
    recent: list[float] = []
    for value in values:
        if value is None:
            out.append(None)
            continue
        recent = [*recent, value][-window:]
        out.append(sum(recent) / len(recent))
    return out


def _columns(records: Sequence[Mapping[str, Any]], *keys: str) -> dict[str, list[float | None]]:
    return {key: column(records, key) for key in keys}


def _exists(series: Series) -> bool:
    return any(value is not None for values in series.values() for value in values)


def _nan(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _lines(steps: Sequence[int], series: Series, limits: tuple[float, float] | None) -> str:
    with mpl.rc_context(STYLE):
        figure, axes = _axes()
        long = len(steps) >= SMOOTH_FROM
        for (name, values), colour in zip(series.items(), COLOURS, strict=False):
            if not _exists({name: values}):
                continue
            if long:
                axes.plot(steps, _nan(values), color=colour, alpha=0.25, linewidth=0.8)
            shown = smooth(values, max(1, len(steps) // 20)) if long else values
            axes.plot(steps, _nan(shown), color=colour, label=name.replace("_", " "), linewidth=1.6, marker="" if len(steps) > 1 else "o")
        if limits is not None:
            low, high = limits
            finite = [value for values in series.values() for value in values if value is not None]
            axes.set_ylim(min(low, *finite, high), max(high, *finite, low))
        if len(series) > 1:
            axes.legend(loc="best", fontsize=8)
        return markup(figure)


def _parts(seconds: Series) -> dict[str, list[float]]:
    """The parts of each step's total that the records have, and what they leave of it as "other", if that is worth drawing.

    Records of before the runners said what they do have "rollout" in place of generate, tools and idle.
    """
    names = (
        [name for name in PARTS if _exists({name: seconds[name]})] if _exists({"idle": seconds["idle"]}) else ["rollout", "learn", "sync"]
    )
    parts = {name: [value or 0.0 for value in seconds[name]] for name in names}
    known = [sum(values) for values in zip(*parts.values(), strict=True)]
    other = [max(0.0, (total or 0.0) - part) for total, part in zip(seconds["total"], known, strict=True)]
    return parts | ({"other": other} if sum(other) > 0.01 * sum(known) else {})


def _stack(steps: Sequence[int], parts: Mapping[str, Sequence[float]]) -> str:
    with mpl.rc_context(STYLE):
        figure, axes = _axes()
        axes.stackplot(steps, list(parts.values()), labels=list(parts), colors=COLOURS, alpha=0.85, linewidth=0)
        figure.legend(loc="outside upper right", fontsize=8, ncols=len(parts))
        return markup(figure)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 2.7), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("training step")
    axes.grid(alpha=0.15, color=INK, linewidth=0.6)
    return figure, axes
