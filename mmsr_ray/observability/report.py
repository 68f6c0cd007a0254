"""report.html of a run folder: what was measured, how it went, where the time went, and a dozen real episodes.

Promise: drawn from the files of the folder alone (summary.json, metrics.jsonl, tools.json, trajectories/*.parquet), so anybody can
draw it again. One file without scripts and without anything from elsewhere. All text that a model or the web wrote is
escaped, links are http(s) only, and a Content-Security-Policy stands behind both. What is not there is said, not hidden.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmsr_ray.evaluation.summary import FILE as SUMMARY
from mmsr_ray.evaluation.tools import read_tools
from mmsr_ray.evaluation.trajectories import StoredTrajectory, read_trajectories
from mmsr_ray.observability.catalogue import TRAJECTORIES, episode_files, step_of
from mmsr_ray.observability.curves import curves
from mmsr_ray.observability.pages import environment, usd
from mmsr_ray.observability.pictures import data_uri
from mmsr_ray.observability.progress import duration, read_records

FILE = "report.html"
BROWSER = "browse/index.html"  # written by observability.browse, where it was
SCANNED = 256  # episodes of a file from which the shown ones are chosen


def write_report(run_dir: str | Path, *, shown: int = 12) -> Path:
    """Write `run_dir`/report.html and return its path; `shown` is the number of episodes. Missing files leave gaps."""
    folder = Path(run_dir)
    summary = json.loads((folder / SUMMARY).read_text()) if (folder / SUMMARY).is_file() else None
    records = read_records(folder / "metrics.jsonl")
    source = newest_episodes(folder / TRAJECTORIES)
    episodes = choose(islice(read_trajectories(source), SCANNED), shown) if source else []
    tools = read_tools(folder)
    page = (
        environment(data_uri)
        .get_template("report.html.jinja")
        .render(
            run=folder.resolve().name,
            summary=summary,
            stages=_shares(summary["seconds"]) if summary else [],
            curves=[(curve.title, curve.note, Markup(curve.svg)) for curve in curves(records)],
            steps=records[-1]["step"] if records else 0,
            tools=tools,
            saving=saving_sentence(tools) if tools else "",
            episodes=episodes,
            source=source.relative_to(folder) if source else None,
            browser=BROWSER if (folder / BROWSER).is_file() else None,
        )
    )
    target = folder / FILE
    partial = target.with_name(FILE + ".partial")
    partial.write_text(page)
    partial.replace(target)
    return target


def newest_episodes(folder: Path) -> Path | None:
    """The file to show: the newest of an evaluation where there is one, else the newest of training (step_*.parquet).

    Of the workflows of one evaluation, on_demand is the one that decides by itself, so it is preferred.
    """
    files = episode_files(folder)
    if not files:
        return None
    return max(files, key=lambda file: (step_of(file) is None, "on_demand" in file.name, file.stat().st_mtime_ns, file.name))


def choose(episodes: Iterable[StoredTrajectory], count: int) -> list[StoredTrajectory]:
    """`count` episodes that differ: round robin over what was needed and whether it came out right, in the file's order."""
    kinds: dict[tuple[str, bool], list[StoredTrajectory]] = {}
    for episode in episodes:
        kinds.setdefault((episode.need or "", bool(episode.correct)), []).append(episode)
    ordered = [kinds[kind] for kind in sorted(kinds, key=lambda kind: (not kind[1], kind[0]))]
    mixed = [episode for row in zip_longest(*ordered) for episode in row if episode is not None]
    return mixed[:count]


def saving_sentence(tools: Mapping[str, Any]) -> str:
    """What asking once for everybody was good for."""
    parts = [f"of {row['asked']:,} {label} {row['paid']:,} reached the service" for label, row in tools["saving"]["searches"].items()]
    if not parts:
        return ""
    saved = tools["saving"]["saved_usd"]
    said = "; ".join(parts) + ": the others were answered from the cache or by a request that was under way for the same thing."
    return said[0].upper() + said[1:] + (f" At the configured prices that saved {usd(saved)}." if saved > 0 else "")


def _shares(seconds: dict[str, float]) -> Sequence[tuple[str, str, float]]:
    """(stage, duration in words, share of the longest in percent), in the order of the run."""
    longest = max(seconds.values(), default=0.0) or 1.0
    return [(stage, duration(value), 100 * value / longest) for stage, value in seconds.items()]
