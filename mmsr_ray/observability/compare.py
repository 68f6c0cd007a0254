"""Two evaluations side by side, question by question: `python -m mmsr_ray.observability.compare runs/a runs/b --out runs/a-and-b`.

    ... compare runs/a runs/b                                  every benchmark and workflow that both have
    ... compare runs/a runs/b --benchmark fvqa_test --workflow on_demand
    ... compare runs/a --workflow rag on_demand                two workflows of one run
    ... compare runs/atlas --model "before RL" "after RL"      two models of one run

Writes a folder of pages: index.html, and of each comparison NAME.html (counts, significance, all questions to be filtered) and
NAME-pairs.html, NAME-pairs.2.html, ... (the answers beside each other, questions on which the sides differ first).

Promise: what is not comparable is shown and said so. The promises of `folder` hold: no page above about 2 MB, all text escaped,
pictures beside the pages, no script but ours.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsr_ray.evaluation.results import Evaluated, not_comparable, read_runs
from mmsr_ray.evaluation.significance import compare
from mmsr_ray.observability.folder import PageFolder, leaf, page_name, parts
from mmsr_ray.observability.pairs import OUTCOMES, Episodes, Pair, error_counts, moves, pairs_of

logger = logging.getLogger(__name__)

PAGE = 8  # questions of one page, each with two answers
SIDES = ("first", "second")


@dataclass(frozen=True)
class Wanted:
    """What to compare: None for whatever both have, else the name for each side."""

    benchmark: str | None = None
    workflows: tuple[str, str] | None = None
    models: tuple[str, str] | None = None


def choose(first: Sequence[Evaluated], second: Sequence[Evaluated], wanted: Wanted) -> list[tuple[Evaluated, Evaluated]]:
    """All pairs of evaluations of one benchmark that are asked for. Raises ValueError, in one sentence, where there is none."""
    alone = all(len({one.model for one in side}) == 1 for side in (first, second))
    found = [
        (a, b)
        for a in first
        for b in second
        if a.benchmark == b.benchmark
        and wanted.benchmark in (None, a.benchmark)
        and (a.workflow == b.workflow if wanted.workflows is None else wanted.workflows == (a.workflow, b.workflow))
        and (alone or a.model == b.model if wanted.models is None else wanted.models == (a.model, b.model))
        and (a.run, a.model, a.workflow) != (b.run, b.model, b.workflow)
    ]
    if not found:
        held = "; ".join(
            f"{one.run} has {one.model}, {one.benchmark}, {one.workflow}" for one in dict.fromkeys((*map(_key, first), *map(_key, second)))
        )
        raise ValueError(f"nothing to compare: name two runs, or one and two of its workflows or models ({held})")
    return found


def write_comparisons(folder: str | Path, compared: Sequence[tuple[Evaluated, Evaluated]]) -> Path:
    """Write the pages of all comparisons and return index.html."""
    names = list(dict.fromkeys(f"{one.model} ({one.run})" for pair in compared for one in pair))
    pages = PageFolder(Path(folder), run=" and ".join(names[:2]), outcomes=OUTCOMES)
    listed = []
    for number, (first, second) in enumerate(compared):
        comparison = _Comparison(first, second, _stem(first, second, [entry["stem"] for entry in listed], number))
        comparison.write(pages)
        listed.append(comparison.summary)
    pages.render("index.html", "comparisons.html.jinja", title="Side by side", listed=listed, filtered=False)
    return pages.path / "index.html"


class _Comparison:
    """The pages of one comparison."""

    def __init__(self, first: Evaluated, second: Evaluated, stem: str) -> None:
        self.sides = (first, second)
        self.stem = stem
        self.pairs = pairs_of(first, second)
        self.summary = self._summary()

    def _summary(self) -> dict[str, Any]:
        first, second = self.sides
        return {
            "stem": self.stem,
            "page": page_name(self.stem, 0),
            "sides": dict(zip(SIDES, self.sides, strict=True)),
            "title": f"{first.benchmark}: {_name(first, second)} and {_name(second, first)}",
            "found": compare(first.answers.values(), second.answers.values(), search_limit=first.search_limit),
            "reasons": not_comparable(first, second),
            "pairs": len(self.pairs),
            "moves": moves(self.pairs),
            "errors": error_counts(self.pairs),
        }

    def write(self, folder: PageFolder) -> None:
        for stale in [*folder.path.glob(f"{self.stem}.*.html"), *folder.path.glob(f"{self.stem}-pairs*.html")]:
            stale.unlink()
        rows = [{"pair": pair, "page": f"{page_name(self._stem_of_pairs, n // PAGE)}#q{n}"} for n, pair in enumerate(self.pairs)]
        for number, part, ways in parts(self.stem, rows):
            self._render(folder, page_name(self.stem, number), "comparison.html.jinja", listed=part, pages=ways, first_page=number == 0)
        self._write_pairs(folder)

    def _write_pairs(self, folder: PageFolder) -> None:
        files = [side.file for side in self.sides]
        episodes = [Episodes(file) for file in files if file is not None]
        count = -(-len(self.pairs) // PAGE)
        for number in range(count):
            first = number * PAGE
            shown = [self._shown(folder, first + n, pair, episodes) for n, pair in enumerate(self.pairs[first : first + PAGE])]
            name = page_name(self._stem_of_pairs, number)
            self._render(folder, name, "pairs.html.jinja", shown=shown, pages=leaf(self._stem_of_pairs, number, count))

    def _shown(self, folder: PageFolder, number: int, pair: Pair, episodes: Sequence[Episodes]) -> dict[str, Any]:
        answers = [source[row] for source, row in zip(episodes, pair.numbers, strict=True)]
        blocks = [folder.block("side.html.jinja", episode=answer) for answer in answers]
        return {"number": number, "pair": pair, "question": answers[0], "blocks": dict(zip(SIDES, blocks, strict=True))}

    @property
    def _stem_of_pairs(self) -> str:
        return f"{self.stem}-pairs"

    def _render(self, folder: PageFolder, name: str, by: str, **values: Any) -> None:
        folder.render(name, by, title=self.summary["title"], comparison=self.summary, filtered=True, **values)


@dataclass(frozen=True)
class _Key:
    run: str
    model: str
    benchmark: str
    workflow: str


def _key(one: Evaluated) -> _Key:
    return _Key(one.run, one.model, one.benchmark, one.workflow)


def _name(one: Evaluated, other: Evaluated) -> str:
    """What tells one side from the other."""
    model = one.model if one.model != other.model or one.run == other.run else f"{one.model} ({one.run})"
    return f"{model}, {one.workflow.replace('_', ' ')}"


def _stem(first: Evaluated, second: Evaluated, taken: Sequence[str], number: int) -> str:
    """File name without its ending, of no other comparison and of none of our own pages."""
    words = dict.fromkeys((first.benchmark, first.workflow, second.workflow))
    stem = re.sub(r"[^A-Za-z0-9_-]", "-", "-".join(words))[:80]
    return stem if stem not in taken and stem != "index" else f"{stem}-{number + 1}"


def _each(names: Sequence[str] | None) -> tuple[str, str] | None:
    """One name is for both sides."""
    return None if names is None else (names[0], names[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="one or two run folders, such as runs/atlas")
    parser.add_argument("--benchmark", help="only this one")
    parser.add_argument("--workflow", nargs="+", help="of both sides, or one for each")
    parser.add_argument("--model", nargs="+", help="of both sides, or one for each")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"), help="folder of the pages (default: runs/comparison)")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if max(len(asked.runs), len(asked.workflow or ""), len(asked.model or "")) > 2:
        parser.error("two runs, two workflows and two models at most: the leaderboard takes more")
    try:
        found = read_runs(asked.runs)
        names = list(dict.fromkeys(one.run for one in found))
        sides = [[one for one in found if one.run == name] for name in (names[0], names[-1])] if names else [[], []]
        compared = choose(sides[0], sides[1], Wanted(asked.benchmark, _each(asked.workflow), _each(asked.model)))
    except FileNotFoundError as error:
        logger.error("%s is missing: name folders of runs that have finished (run.dir/run.name)", error.filename)
        return 2
    except ValueError as error:
        logger.error("%s", error)
        return 2
    logger.info("%s", write_comparisons(asked.out, compared))
    return 0


if __name__ == "__main__":
    sys.exit(main())
