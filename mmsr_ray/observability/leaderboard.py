"""Runs beside each other: `python -m mmsr_ray.observability.leaderboard runs/a runs/b ... --out runs/leaderboard`.

Reads summary.json, config.yaml and the kept trajectories of each run folder, prints a table and writes FOLDER/leaderboard.html.

Promise: the numbers are those of the runs; what may be compared, what is best and what is more than chance is decided by
`evaluation.standings`. The page is one file without scripts and without anything from elsewhere, all text escaped.
"""

from __future__ import annotations

import argparse
import logging
import sys
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmsr_ray.evaluation.results import Evaluated, read_runs
from mmsr_ray.evaluation.standings import LEVEL, Cell, Line, Standings, standings
from mmsr_ray.observability.pages import environment, hundred, p_value, points
from mmsr_ray.observability.pictures import data_uri

logger = logging.getLogger(__name__)

FILE = "leaderboard.html"
WIDTH = 132  # columns of the table where the output is narrower or no terminal: numbers are never cut
TOLD = 20  # significant differences in the terminal, the clearest first


def write_leaderboard(folder: str | Path, board: Standings) -> Path:
    """Write `folder`/leaderboard.html and return its path."""
    target = Path(folder) / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    page = (
        environment(data_uri)
        .get_template("leaderboard.html.jinja")
        .render(
            board=board,
            lines=_lines(board),
            excluded=[cell for cell in _cells(board) if cell.reasons],
            untested=[cell.evaluated for cell in _cells(board) if not cell.evaluated.complete],
            pairs={benchmark: list(pairs) for benchmark, pairs in groupby(board.pairs, key=lambda pair: pair.benchmark)},
            level=LEVEL,
        )
    )
    partial = target.with_name(FILE + ".partial")
    partial.write_text(page)
    partial.replace(target)
    return target


def show(board: Standings, console: Console) -> None:
    """The same in the terminal: the table, what is not comparable, and the differences that are significant."""
    table = Table(box=box.SIMPLE_HEAD, caption="accuracy / search ratio in percent; * best, = not told apart from it, ! not comparable")
    table.add_column("model", overflow="fold", min_width=16)
    for name in ("average", *board.benchmarks):
        table.add_column(escape(name), justify="right", no_wrap=True)
    for workflow, block in board.blocks.items():
        table.add_section()
        table.add_row(f"[bold]{escape(workflow)}[/bold]")
        for line in block:
            average = "–" if line.accuracy is None else f"{hundred(line.accuracy)} / {hundred(line.search_ratio)}"
            cells = [_in_terminal(line.cells.get(benchmark)) for benchmark in board.benchmarks]
            table.add_row(f"{escape(line.model)}\n[dim]{escape(line.run)}[/dim]", average, *cells)
    console.print(table)
    for cell in _cells(board):
        if cell.reasons:
            console.print(f"! {escape(_who(cell.evaluated))} on {escape(cell.evaluated.benchmark)}: {escape('; '.join(cell.reasons))}")
    significant = sorted((pair for pair in board.pairs if pair.significant), key=lambda pair: pair.p)
    for pair in significant[:TOLD]:
        difference = f"{points(pair.found['accuracy']['difference'])} points, p {p_value(pair.p)}"
        console.print(escape(f"{pair.benchmark}: {_who(pair.second)} against {_who(pair.first)}: {difference}"))
    console.print(f"{len(significant)} of {len(board.pairs)} tested differences are significant; the page has all of them.")


def _in_terminal(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    row = cell.evaluated.row
    mark = "!" if cell.reasons else "*" if cell.best else "=" if cell.level else " "
    interval = f"{hundred(cell.low)}–{hundred(cell.high)}"
    return f"{hundred(row['accuracy'])} / {hundred(row['search_ratio_calls'])}{mark}\n{interval} "


def _who(one: Evaluated) -> str:
    return f"{one.model}, {one.workflow} ({one.run})"


def _lines(board: Standings) -> list[Line]:
    return [line for block in board.blocks.values() for line in block]


def _cells(board: Standings) -> list[Cell]:
    return [cell for line in _lines(board) for cell in line.cells.values()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, such as runs/atlas")
    parser.add_argument("--out", type=Path, default=Path("runs/leaderboard"), help="folder of the page (default: runs/leaderboard)")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        board = standings(read_runs(asked.runs))
    except FileNotFoundError as error:
        logger.error("%s is missing: name folders of runs that have finished (run.dir/run.name)", error.filename)
        return 2
    except ValueError as error:
        logger.error("%s", error)
        return 2
    show(board, Console(width=max(WIDTH, Console().width)))
    logger.info("%s", write_leaderboard(asked.out, board))
    return 0


if __name__ == "__main__":
    sys.exit(main())
