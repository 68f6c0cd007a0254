"""findings.html: the paper's table, figures and findings as they came out here, from one plain dict.

Promise: what is drawn is what was given, nothing is measured or judged here; a part that is missing or empty is said to be
missing. One file without scripts and without anything from elsewhere, all text escaped, as report.html.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmsr_ray.evaluation.significance import over_seeds
from mmsr_ray.observability import figures
from mmsr_ray.observability.figures import Seeds
from mmsr_ray.observability.pages import environment
from mmsr_ray.observability.pictures import data_uri
from mmsr_ray.observability.progress import duration

FILE = "findings.html"


@dataclass(frozen=True, slots=True)
class Cell:
    """Acc / SR of one model in one workflow on one kind of question; `best`: highest accuracy of its column."""

    accuracy: Mapping[str, Any] | None  # of significance.over_seeds
    search_ratio: Mapping[str, Any] | None
    best: bool


@dataclass(frozen=True, slots=True)
class Line:
    model: str
    cells: list[Cell]


def write_findings(folder: str | Path, findings: Mapping[str, Any]) -> Path:
    """Write `folder`/findings.html and return its path.

    Keys of `findings`, each of which may be missing ("per seed" is a list with one value a seed, None where it has none; all
    accuracies, ratios and class shares lie in [0, 1]):
    - "findings": [{"id", "claim", "held": bool, "verdict", "numbers", "seeds": [int], "reason"}], where "numbers" is
      [{"name", "per_seed", "mean", "low", "high", "unit"}]: with unit "%" the values are shares in [0, 1], shown in percent, and low
      and high are of the 95 % interval of the mean;
    - "table": [{"model", "workflow", "cells": {column: {"accuracy": per seed, "search_ratio": per seed}}}] (Table 1);
    - "rag": {"before RL" | "after RL": {group: accuracies per seed}} (Fig. 4a);
    - "behaviour": {"before RL" | "after RL": {class of `metrics.behaviour`: shares per seed}} (Fig. 4b);
    - "sft": [{"name", "questions": int, "accuracy": per seed, "search_ratio": per seed}] (Fig. 5a);
    - "curves": {variant: per seed [{"step", "reward", "search_ratio"}]}, where a step may have "held_out", its search ratio on the
      held-out questions, and "needed", the search ratio of a policy that searches as needed there (Fig. 5b);
    - "machine" of `summary.machine`, "seconds" of the whole.
    """
    target = Path(folder) / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    columns, blocks = table_1(findings.get("table", []))
    page = (
        environment(data_uri)
        .get_template("findings.html.jinja")
        .render(
            findings=[shown_finding(finding) for finding in findings.get("findings", [])],
            columns=columns,
            blocks=blocks,
            rag=_rag(findings.get("rag", {})),
            behaviour=_behaviour(findings.get("behaviour", {})),
            sft=_sft(findings.get("sft", [])),
            curves=_curves(findings.get("curves", {}), findings.get("needed")),
            machine=findings.get("machine"),
            seconds=duration(findings["seconds"]) if "seconds" in findings else None,
        )
    )
    partial = target.with_name(FILE + ".partial")
    partial.write_text(page)
    partial.replace(target)
    return target


def table_1(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, list[Line]]]:
    """(columns, lines of each workflow), both in the order of `rows`."""
    columns = list(dict.fromkeys(column for row in rows for column in row["cells"]))
    best = {column: _best(row["cells"].get(column) for row in rows) for column in columns}
    blocks: dict[str, list[Line]] = {}
    for row in rows:
        cells = [_cell(row["cells"].get(column), best[column]) for column in columns]
        blocks.setdefault(row["workflow"], []).append(Line(row["model"], cells))
    return columns, blocks


def shown_finding(finding: Mapping[str, Any]) -> dict[str, Any]:
    """A finding whose numbers have one cell a seed."""
    width = max([len(finding["seeds"]), *(len(number["per_seed"]) for number in finding["numbers"])])
    padded = [{**number, "per_seed": [*number["per_seed"], *[None] * (width - len(number["per_seed"]))]} for number in finding["numbers"]]
    return {**finding, "numbers": padded, "seeds": [*finding["seeds"], *["?"] * (width - len(finding["seeds"]))]}


def _best(cells: Iterable[Mapping[str, Seeds] | None]) -> float | None:
    means = [found["mean"] for cell in cells if cell is not None and (found := _over(cell["accuracy"])) is not None]
    return max(means, default=None)


def _cell(cell: Mapping[str, Seeds] | None, best: float | None) -> Cell:
    if cell is None:
        return Cell(None, None, False)
    accuracy = _over(cell["accuracy"])
    return Cell(accuracy, _over(cell["search_ratio"]), accuracy is not None and accuracy["mean"] == best)


def _over(values: Seeds) -> Mapping[str, Any] | None:
    """Of the seeds that have the number; None where none has."""
    known = [value for value in values if value is not None]
    return over_seeds(known) if known else None


def _rag(rag: Mapping[str, Mapping[str, Seeds]]) -> Markup | None:
    groups = list(dict.fromkeys(group for values in rag.values() for group in values))
    if not groups:
        return None
    return Markup(figures.bars(groups, {name: [values.get(group, []) for group in groups] for name, values in rag.items()}))


def _behaviour(behaviour: Mapping[str, Mapping[str, Seeds]]) -> Markup | None:
    return Markup(figures.stacks(behaviour)) if behaviour else None


def _sft(rows: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Accuracy, then search ratio."""
    if not rows:
        return []
    groups = [f"{row['name']}\n{row['questions']:,} questions" for row in rows]
    panels = {"accuracy": "accuracy", "search_ratio": "search ratio (calls)"}
    return [Markup(figures.bars(groups, {label: [row[key] for row in rows]}, title=label)) for key, label in panels.items()]


def _curves(curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], needed: float | None) -> list[Markup]:
    """Reward, then search ratio."""
    if not curves:
        return []
    return [
        Markup(figures.training(curves, "reward", "reward")),
        Markup(figures.training(curves, "search_ratio", "search ratio", needed=needed, dots="held_out")),
    ]
