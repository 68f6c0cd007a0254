"""Every episode that a run kept, as a folder of pages: `python -m mmsr_ray.observability.browse runs/NAME`.

A job writes it when it ends; the command renews it and the report at any time, also while the run goes on.
Writes runs/NAME/browse/: index.html (steps and evaluations), episodes.html (all, to be filtered), and pages of PAGE episodes
for each step and evaluation. It can be opened from disk, copied, or served by anything.

Promise: no page is larger than about 2 MB, however much was written or found: pictures lie beside the pages, long lists and
steps are cut into pages, long texts are cut and say so (`folder`). Pages of a step that has not changed are not written
again. What a model or the web wrote is text and nothing else: it is escaped, and links are http(s) only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from importlib.resources import files
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from mmsr_ray.evaluation.trajectories import StoredTrajectory, read_trajectories
from mmsr_ray.observability.catalogue import TRAJECTORIES, Row, Source, episode_files, read_source
from mmsr_ray.observability.folder import MOST_CHARS, SIDE, PageFolder, leaf, page_name, parts
from mmsr_ray.observability.report import write_report

logger = logging.getLogger(__name__)

FOLDER = "browse"
STATE = "state.json"  # what the pages were made from
PAGE = 16  # episodes of one page: two groups of eight


def write_browser(run_dir: str | Path) -> Path:
    """Write or renew `run_dir`/browse and return its index.html."""
    browser = _Browser(Path(run_dir))
    sources = [read_source(file, browser.trajectories) for file in episode_files(browser.trajectories)]
    browser.write(sources)
    return browser.folder / "index.html"


class _Browser:
    """The pages of one run."""

    def __init__(self, run: Path) -> None:
        self.trajectories = run / TRAJECTORIES
        self.folder = run / FOLDER
        self._pages = PageFolder(self.folder, run=run.resolve().name)

    def write(self, sources: Sequence[Source]) -> None:
        known = self._known()
        current: dict[str, list[Any]] = {}
        for number, source in enumerate(sources):
            before, after = _neighbour(sources, number, -1), _neighbour(sources, number, 1)
            current[source.stem] = [*_mark(source.path), before, after]
            if known.get(source.stem) != current[source.stem]:
                self._write_source(source, before, after)
        self._write_index(sources)
        self._write_episodes(sources)
        self._pages.put(STATE, json.dumps({"look": _look(), "files": current}))

    # ------------------------------------------------------------------------------------------------ steps and evaluations

    def _write_source(self, source: Source, previous: str | None, following: str | None) -> None:
        for stale in self.folder.glob(f"{source.stem}.*.html"):
            stale.unlink()
        count = -(-source.count // PAGE)
        episodes = read_trajectories(source.path)
        for number in range(count):
            first = number * PAGE
            numbered = list(enumerate(islice(episodes, PAGE), start=first))
            groups = [self._group(list(pairs), source.rows) for _, pairs in groupby(numbered, key=lambda pair: pair[1].uid)]
            self._pages.render(
                page_name(source.stem, number),
                "step.html.jinja",
                title=source.title,
                source=source,
                groups=groups,
                pages=leaf(source.stem, number, count),
                previous=previous,
                next=following,
                filtered=True,
            )

    def _group(self, episodes: Sequence[tuple[int, StoredTrajectory]], rows: Sequence[Row]) -> dict[str, Any]:
        """Rollouts of one question that stand on one page."""
        all_of_it = [row for row in rows if row.uid == rows[episodes[0][0]].uid]
        return {
            "first": episodes[0][1],
            "blocks": [
                self._pages.block("rollout.html.jinja", number=number, episode=episode, row=rows[number]) for number, episode in episodes
            ],
            "size": len(all_of_it),
            "right": sum(row.verdict == "right" for row in all_of_it),
        }

    # ------------------------------------------------------------------------------------------------ lists

    def _write_index(self, sources: Sequence[Source]) -> None:
        evaluations = [source for source in sources if source.step is None]
        steps = [source for source in sources if source.step is not None]
        listed = [{"page": page_name(source.stem, 0), "source": source} for source in [*evaluations, *reversed(steps)]]
        totals = {"total": sum(source.count for source in sources), "steps": len(steps), "evaluations": len(evaluations)}
        for number, part, pages in parts("index", listed):
            self._pages.render(
                page_name("index", number), "index.html.jinja", title="Episodes", listed=part, pages=pages, filtered=False, **totals
            )

    def _write_episodes(self, sources: Sequence[Source]) -> None:
        evaluations = [source for source in sources if source.step is None]
        steps = [source for source in sources if source.step is not None]
        listed = [
            {"row": row, "title": source.title, "page": f"{page_name(source.stem, number // PAGE)}#e{number}"}
            for source in [*reversed(steps), *evaluations]
            for number, row in enumerate(source.rows)
        ]
        for number, part, pages in parts("episodes", listed):
            self._pages.render(
                page_name("episodes", number), "episodes.html.jinja", title="All episodes", listed=part, pages=pages, filtered=True
            )

    # ------------------------------------------------------------------------------------------------ files

    def _known(self) -> dict[str, Any]:
        """What the pages that are there were made from; nothing where they were made by other templates."""
        file = self.folder / STATE
        state = json.loads(file.read_text()) if file.is_file() else {}
        return state["files"] if state.get("look") == _look() else {}


def _neighbour(sources: Sequence[Source], number: int, way: int) -> str | None:
    """Page of the training step or evaluation before (-1) or after (1); steps and evaluations do not mix."""
    if not 0 <= number + way < len(sources) or (sources[number].step is None) != (sources[number + way].step is None):
        return None
    return page_name(sources[number + way].stem, 0)


def _mark(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _look() -> str:
    """Changes when pages would look different."""
    folder = files("mmsr_ray.observability") / "templates"
    parts = [entry.read_text() for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)]
    return hashlib.sha256(json.dumps([parts, PAGE, MOST_CHARS, SIDE]).encode()).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder, such as runs/atlas")
    run: Path = parser.parse_args().run
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not (run / TRAJECTORIES).is_dir():
        logger.error("%s holds no %s: name the folder of a run (run.dir/run.name)", run, TRAJECTORIES)
        return 2
    index = write_browser(run)
    write_report(run)
    logger.info("%s", index)
    return 0


if __name__ == "__main__":
    sys.exit(main())
