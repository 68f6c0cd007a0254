"""The figures of the paper in small: bars over seeds (Fig. 4a, 5a), behaviour classes (Fig. 4b), training curves (Fig. 5b).

Promise: pure from numbers to markup. Every bar and line is the mean of the seeds, every whisker and band reaches from the lowest
seed to the highest. All values are shares in [0, 1] (a reward may leave it) and are shown in percent where the paper does so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmsr_ray.evaluation.classes import BEHAVIOURS
from mmsr_ray.observability.curves import SMOOTH_FROM, smooth
from mmsr_ray.observability.drawing import COLOURS, INK, STYLE, markup
from mmsr_ray.observability.seeds import Spread, spread

CLASS_COLOURS = {"correct_search": "#059669", "correct_no_search": "#6ee7b7", "wrong_search": "#f59e0b", "wrong_no_search": "#94a3b8"}
ON_BAR = "#0b1220"  # text on a bar, on either ground
LETTER = 0.075  # inches of a letter below the axis, about: neighbours' labels must not touch
ROOM = 1.12  # of an axis above the highest value, for its label

Seeds = Sequence[float | None]  # one value a seed


def bars(groups: Sequence[str], series: Mapping[str, Sequence[Seeds]], *, title: str = "") -> str:
    """Bars side by side in each group: `series` maps a name to the seeds of each group, in percent when drawn."""
    with mpl.rc_context(STYLE):
        longest = max((len(line) for group in groups for line in group.splitlines()), default=0)
        group_width = max(0.75 * len(series), LETTER * (longest + 2))
        figure = Figure(figsize=(max(3.6, 0.9 + group_width * len(groups)), 2.9), layout="constrained")
        axes = figure.add_subplot()
        _bars(axes, groups, series)
        if title:
            axes.set_title(title, fontsize=9)
        if len(series) > 1:
            figure.legend(loc="outside upper center", ncols=len(series), fontsize=8)
        return markup(figure)


def stacks(behaviour: Mapping[str, Mapping[str, Seeds]]) -> str:
    """One bar per policy, cut into the shares of its behaviour classes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 0.9 + 0.65 * len(behaviour)), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(behaviour))
        left = [0.0] * len(behaviour)
        for name, label in BEHAVIOURS.items():
            shares = [_percent(spread(classes.get(name, []))) for classes in behaviour.values()]
            widths = [0.0 if share is None else share.mean for share in shares]
            axes.barh(places, widths, left=left, height=0.62, color=CLASS_COLOURS[name], label=label)
            for place, width in zip(places, widths, strict=True):
                if width >= 5:
                    axes.text(left[place] + width / 2, place, f"{width:.1f}", ha="center", va="center", fontsize=8, color=ON_BAR)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_yticks(places, list(behaviour))
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of responses")
        figure.legend(loc="outside upper center", ncols=2, fontsize=8)
        return markup(figure)


def training(
    curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], key: str, label: str, *, needed: float | None = None, dots: str = ""
) -> str:
    """`key` over training steps, a line with a band per variant; `needed` is a dashed line across, `dots` a key that some steps have."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for (variant, runs), colour in zip(curves.items(), COLOURS, strict=False):
            steps, spreads = over_seeds(runs, key)
            mark = "" if len(steps) > 1 else "o"
            axes.fill_between(steps, [s.low for s in spreads], [s.high for s in spreads], color=colour, alpha=0.18, linewidth=0)
            axes.plot(steps, [s.mean for s in spreads], color=colour, linewidth=1.6, label=variant, marker=mark)
            places, found = over_seeds(runs, dots)
            axes.plot(places, [s.mean for s in found], color=colour, marker="o", markersize=4, linestyle="")
        if needed is not None:
            axes.axhline(needed, color=INK, linewidth=1.0, linestyle="--", label="what is needed")
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(1.0, axes.get_ylim()[1]))
        axes.set_xlabel("training step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.15, color=INK, linewidth=0.6)
        figure.legend(loc="outside upper center", ncols=2, fontsize=8)
        return markup(figure)


def _bars(axes: Axes, groups: Sequence[str], series: Mapping[str, Sequence[Seeds]]) -> None:
    width = 0.8 / max(1, len(series))
    highest = 0.0
    for number, ((name, seeds), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        known = [(place, found) for place, values in enumerate(seeds) if (found := _percent(spread(values))) is not None]
        places = [place + (number - (len(series) - 1) / 2) * width for place, _ in known]
        means = [found.mean for _, found in known]
        whiskers = [[found.mean - found.low for _, found in known], [found.high - found.mean for _, found in known]]
        axes.bar(
            places, means, 0.92 * width, yerr=whiskers, color=colour, label=name, error_kw={"ecolor": INK, "elinewidth": 0.9, "capsize": 2}
        )
        for place, (_, found) in zip(places, known, strict=True):
            axes.annotate(f"{found.mean:.1f}", (place, found.high), (0, 3), textcoords="offset points", ha="center", fontsize=8)
        highest = max([highest, *(found.high for _, found in known)])
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlim(-0.55, len(groups) - 0.45)
    axes.set_ylim(0, max(10.0, ROOM * highest))
    axes.set_ylabel("%")


def over_seeds(runs: Sequence[Sequence[Mapping[str, Any]]], key: str) -> tuple[list[int], list[Spread]]:
    """(steps that every seed reached, spread of the seeds); long curves are smoothed seed by seed, as in the report."""
    runs = [records for records in runs if records]
    values: dict[int, list[float | None]] = {}
    for records in runs:
        series = [record.get(key) for record in records]
        if len(series) >= SMOOTH_FROM and None not in series:
            series = smooth(series, len(series) // 20)
        for record, value in zip(records, series, strict=True):
            values.setdefault(int(record["step"]), []).append(value)
    found = {step: spread(values[step]) for step in sorted(values) if len(values[step]) == len(runs)}
    known = {step: value for step, value in found.items() if value is not None}
    return list(known), list(known.values())


def _percent(share: Spread | None) -> Spread | None:
    return None if share is None else Spread(100 * share.mean, 100 * share.low, 100 * share.high)
