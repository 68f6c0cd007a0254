"""report.html of a run folder: what was measured, how it went, where the time went, and a dozen real episodes.

Promise: drawn from the files of the folder alone (summary.json, metrics.jsonl, tools.json, trajectories/*.parquet), so anybody can
draw it again. One file without scripts and without anything from elsewhere. All text that a model or the web wrote is
escaped, links are http(s) only, and a Content-Security-Policy stands behind both. What is not there is said, not hidden.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from mmsr_ray.evaluation.summary import FILE as SUMMARY
from mmsr_ray.evaluation.tools import read_tools
from mmsr_ray.evaluation.trajectories import StoredTrajectory, read_trajectories
from mmsr_ray.observability.curves import curves
from mmsr_ray.observability.progress import NEEDS, duration, read_records

FILE = "report.html"
TRAJECTORIES = "trajectories"
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
SIDE = 320  # pixels of a picture's longer side in the report
SCANNED = 256  # episodes of a file from which the shown ones are chosen
SUMMARY_CHARS = 1_500


def write_report(run_dir: str | Path, *, shown: int = 12) -> Path:
    """Write `run_dir`/report.html and return its path; `shown` is the number of episodes. Missing files leave gaps."""
    folder = Path(run_dir)
    summary = json.loads((folder / SUMMARY).read_text()) if (folder / SUMMARY).is_file() else None
    records = read_records(folder / "metrics.jsonl")
    source = newest_episodes(folder / TRAJECTORIES)
    episodes = choose(islice(read_trajectories(source), SCANNED), shown) if source else []
    tools = read_tools(folder)
    page = (
        _environment()
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
    files = list(folder.rglob("*.parquet")) if folder.is_dir() else []
    if not files:
        return None
    return max(files, key=lambda file: (not file.name.startswith("step_"), "on_demand" in file.name, file.stat().st_mtime_ns, file.name))


def choose(episodes: Iterable[StoredTrajectory], count: int) -> list[StoredTrajectory]:
    """`count` episodes that differ: round robin over what was needed and whether it came out right, in the file's order."""
    kinds: dict[tuple[str, bool], list[StoredTrajectory]] = {}
    for episode in episodes:
        kinds.setdefault((episode.need or "", bool(episode.correct)), []).append(episode)
    ordered = [kinds[kind] for kind in sorted(kinds, key=lambda kind: (not kind[1], kind[0]))]
    mixed = [episode for row in zip_longest(*ordered) for episode in row if episode is not None]
    return mixed[:count]


def data_uri(picture: bytes | None, side: int = SIDE) -> str | None:
    """A picture as a data URI, scaled down to `side` pixels; None for what is no picture (None, corrupt, unknown, a bomb)."""
    if not picture:
        return None
    try:
        with Image.open(io.BytesIO(picture), formats=list(FORMATS)) as image:
            mime = FORMATS[str(image.format)]
            if max(image.size) > side:
                image.thumbnail((side, side))
                out = io.BytesIO()
                image.convert("RGB").save(out, format="PNG")
                picture, mime = out.getvalue(), "image/png"
    except (OSError, ValueError, Image.DecompressionBombError):  # foreign bytes; the page says that the picture is missing
        return None
    return f"data:{mime};base64,{base64.b64encode(picture).decode()}"


def number(value: Any, digits: int = 2) -> str:
    """A figure of a table; undefined ones are a dash."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def link(url: str) -> str | None:
    """The address if a browser may be sent there."""
    return url if url.startswith(("http://", "https://")) else None


def clip(text: str, length: int = SUMMARY_CHARS) -> str:
    return text if len(text) <= length else text[:length] + " …"


def usd(value: float | None) -> str:
    """Four places below a dollar, two above."""
    return "–" if value is None else f"{value:.4f} USD" if abs(value) < 1 else f"{value:,.2f} USD"


def counts(kinds: Mapping[str, int]) -> str:
    """Failures by kind in words."""
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in kinds.items()) or "–"


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


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mmsr_ray.observability", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_uri": data_uri,
        "number": number,
        "percent": percent,
        "link": link,
        "clip": clip,
        "usd": usd,
        "counts": counts,
    }
    environment.globals["needs"] = NEEDS
    return environment
