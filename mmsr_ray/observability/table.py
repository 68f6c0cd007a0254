"""Rows of results as a table in the terminal.

Promise: plain text of at most `width` columns without colours, because a job's log is read in browsers and files too; what is not
defined is a dash.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 132


def write_table(rows: Sequence[Mapping[str, Any]], stream: TextIO | None = None, width: int = WIDTH) -> None:
    """One line a row of `evaluation.metrics.measure`; accuracy with its 95 % interval."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name in ("model", "benchmark", "workflow"):
        table.add_column(name, overflow="fold")
    for name in ("questions", "accuracy", "95 %\ninterval", "searches\n/ allowed", "searching", "precision", "recall", "lost"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["model"],
            row["benchmark"],
            row["workflow"],
            str(row["questions"]),
            percent(row["accuracy"]),
            interval(row["accuracy_low"], row["accuracy_high"]),
            percent(row["search_ratio_calls"]),
            percent(row["search_ratio_responses"]),
            percent(row["search_precision"]),
            percent(row["search_recall"]),
            str(row["infra_errors"]),
        )
    console = Console(file=sys.stdout if stream is None else stream, width=width, color_system=None)
    console.print(table)


def percent(share: float | None) -> str:
    """96.2 %; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f} %"


def interval(low: float | None, high: float | None) -> str:
    """[93.0, 98.0]; a dash for None."""
    return "-" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"
