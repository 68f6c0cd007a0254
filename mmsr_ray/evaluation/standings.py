"""Evaluations of several runs in one table: who is best at what, and which differences are more than chance. Pure.

Promise: what is not comparable with the rest of its benchmark is shown and said so, and never takes part in "best" or in a test.
Of each benchmark those evaluations stand together that are comparable with one another; where there are several such groups
the largest counts. p values are of McNemar's exact test, corrected by Holm's method for all pairs of the benchmark that are looked
at: each with the best of all, each with the best of its workflow, and one model by different workflows. An evaluation of which
only some answers were kept is in no test; evaluations in the middle of a training run are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from mmsr_ray.evaluation.metrics import wilson
from mmsr_ray.evaluation.results import Evaluated, not_comparable
from mmsr_ray.evaluation.settings import WORKFLOWS
from mmsr_ray.evaluation.significance import compare

LEVEL = 0.05
ORDER = ("direct", "rag", "on_demand")  # of the paper's Table 1
DOMAINS = {"in-domain": ("fvqa_test", "infoseek"), "out-of-domain": ("mmsearch", "simplevqa", "livevqa")}  # its Fig. 4a averages over each
Mean = tuple[float | None, float | None]  # accuracy and search ratio over several benchmarks, None where one is missing


@dataclass(frozen=True)
class Cell:
    """One evaluation in the table. `reasons`: why it is not comparable with the others; `level`: not told apart from the best."""

    evaluated: Evaluated
    low: float | None
    high: float | None
    reasons: list[str]
    best: bool
    level: bool


@dataclass(frozen=True)
class Line:
    """One model by one workflow. The averages are over all benchmarks of the table, and over those of each of its domains."""

    run: str
    model: str
    workflow: str
    cells: dict[str, Cell]  # by benchmark
    accuracy: float | None
    search_ratio: float | None
    domains: dict[str, Mean]


@dataclass(frozen=True)
class Pair:
    """Two evaluations of one benchmark; `found` as `significance.compare` gives it, second minus first; `p`: corrected."""

    benchmark: str
    first: Evaluated
    second: Evaluated
    found: dict[str, Any]
    p: float

    @property
    def significant(self) -> bool:
        return self.p < LEVEL


@dataclass(frozen=True)
class Standings:
    """`domains`: benchmarks by their domain, {} unless there are some of both."""

    benchmarks: list[str]
    domains: dict[str, list[str]]
    blocks: dict[str, list[Line]]  # by workflow
    pairs: list[Pair]


def standings(results: Sequence[Evaluated]) -> Standings:
    """Lines in the order of `results`, workflows in that of the paper."""
    results = [result for result in results if not result.while_training]
    benchmarks = list(dict.fromkeys(result.benchmark for result in results))
    domains = _domains(benchmarks)
    cells: dict[Evaluated, Cell] = {}
    pairs: list[Pair] = []
    for benchmark in benchmarks:
        of_it = [result for result in results if result.benchmark == benchmark]
        found = _pairs(benchmark, _together(of_it))
        pairs += found
        cells |= _cells(of_it, found)
    blocks: dict[str, list[Line]] = {}
    lines = dict.fromkeys((result.run, result.model, result.workflow) for result in results)
    for run, model, workflow in sorted(lines, key=lambda line: _place(line[2])):
        own = {r.benchmark: cells[r] for r in results if (r.run, r.model, r.workflow) == (run, model, workflow)}
        blocks.setdefault(workflow, []).append(
            Line(run, model, workflow, own, *_mean(own, benchmarks), {name: _mean(own, those) for name, those in domains.items()})
        )
    return Standings(benchmarks, domains, blocks, pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected for all of them by Holm's step-down method (Holm 1979, Scandinavian Journal of Statistics 6:65), in their order."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def _together(of_it: Sequence[Evaluated]) -> list[Evaluated]:
    """The largest group of comparable evaluations, the first of the largest."""
    groups: list[list[Evaluated]] = []
    for result in of_it:
        group = next((group for group in groups if not any(not_comparable(one, result) for one in group)), None)
        if group is None:
            groups.append([result])
        else:
            group.append(result)
    return max(groups, key=len)


def _pairs(benchmark: str, group: Sequence[Evaluated]) -> list[Pair]:
    of_all = _best(group)
    best = {workflow: _best([result for result in group if result.workflow == workflow]) for workflow in WORKFLOWS}
    wanted = [
        (a, b)
        for a, b in combinations([result for result in group if result.complete], 2)
        if of_all in (a, b) or (a.workflow == b.workflow and best.get(a.workflow) in (a, b)) or (a.run, a.model) == (b.run, b.model)
    ]
    found = [compare(a.answers.values(), b.answers.values(), search_limit=a.search_limit) for a, b in wanted]
    tested = [(pair, row) for pair, row in zip(wanted, found, strict=True) if row["p_value"] is not None]
    corrected = holm([row["p_value"] for _, row in tested])
    return [Pair(benchmark, a, b, row, p) for ((a, b), row), p in zip(tested, corrected, strict=True)]


def _cells(of_it: Sequence[Evaluated], pairs: Sequence[Pair]) -> dict[Evaluated, Cell]:
    group = _together(of_it)
    best = _best(group)
    inside = set(group)
    level = {pair.first for pair in pairs if pair.second is best and not pair.significant}
    level |= {pair.second for pair in pairs if pair.first is best and not pair.significant}
    cells = {}
    for result in of_it:
        low, high = result.row.get("accuracy_low"), result.row.get("accuracy_high")
        if low is None and result.row["accuracy"] is not None:
            low, high = wilson(round(result.row["accuracy"] * result.row["questions"]), result.row["questions"])
        reasons = [] if result in inside else next(filter(None, (not_comparable(one, result) for one in group)), [])
        cells[result] = Cell(result, low, high, reasons, result is best, result in level)
    return cells


def _best(group: Sequence[Evaluated]) -> Evaluated | None:
    """None where there is nothing to be better than."""
    known = [result for result in group if result.row["accuracy"] is not None]
    return max(known, key=lambda result: result.row["accuracy"]) if len(known) > 1 else None


def _domains(benchmarks: Sequence[str]) -> dict[str, list[str]]:
    of = {name: [benchmark for benchmark in benchmarks if benchmark in those] for name, those in DOMAINS.items()}
    return of if all(of.values()) else {}


def _mean(cells: dict[str, Cell], benchmarks: Sequence[str]) -> Mean:
    rows = [cells[benchmark].evaluated.row for benchmark in benchmarks if benchmark in cells]
    means = []
    for key in ("accuracy", "search_ratio_calls"):
        values = [row[key] for row in rows if row[key] is not None]
        means.append(sum(values) / len(values) if len(values) == len(benchmarks) else None)
    return means[0], means[1]


def _place(workflow: str) -> int:
    return ORDER.index(workflow) if workflow in WORKFLOWS else len(ORDER)
