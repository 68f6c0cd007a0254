"""Rows of results for one set of weights: every workflow over the test questions, on runners that are up.

Promise: a label's rows are measured once. They are written to the run folder as soon as all of them are there, and a
run that is restarted reads them back; what it goes back behind is forgotten (`forget_after`) and measured anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle

from mmsr_ray.config import Config
from mmsr_ray.data.reader import iter_samples
from mmsr_ray.evaluation.run import evaluate
from mmsr_ray.evaluation.summary import write_json
from mmsr_ray.evaluation.trajectories import write_trajectories

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30.0  # on top of what the agent allows one question


def rows_file(folder: Path, label: str) -> Path:
    return folder / "rows" / f"{label.replace(' ', '_')}.json"


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a run folder, in the order in which they were measured."""
    files = sorted((folder / "rows").glob("*.json"), key=lambda file: file.stat().st_mtime)
    return [row for file in files for row in json.loads(file.read_text())]


def forget_after(folder: Path, step: int) -> None:
    """Drop the rows of later training steps: they are of weights that a run that goes back to `step` will not have again."""
    for file in (folder / "rows").glob("*.json"):
        if any(row.get("step", step) > step for row in json.loads(file.read_text())):
            file.unlink()


def measure_rows(
    config: Config, actors: Sequence[ActorHandle], label: str, folder: Path, extra: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """One row per workflow, named "<label>, <workflow>", with `extra` in it; a few trajectories of each go to folder/trajectories."""
    file = rows_file(folder, label)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [_row(config, workflow, label, folder, actors) | dict(extra or {}) for workflow in config.evaluation.workflows]
        write_json(file, rows)
    return json.loads(file.read_text())


def _row(config: Config, workflow: str, label: str, folder: Path, actors: Sequence[ActorHandle]) -> dict[str, Any]:
    attempts = config.rollout.infra_retries + 1
    result = evaluate(
        actors,
        iter_samples(config.data.test, config.data, questions=config.evaluation.questions, seed=config.run.seed),
        workflow,
        inflight_per_runner=min(config.rollout.max_num_seqs, config.rollout.max_inflight_groups),
        sample_seconds=attempts * config.agent.deadline_seconds + GRACE_SECONDS,
        deadline_seconds=config.evaluation.deadline_seconds,
        keep=config.evaluation.trajectories_shown,
    )
    write_trajectories(folder / "trajectories" / f"{label}-{workflow}.parquet".replace(" ", "_"), result.kept(), split="test")
    row = result.row(name=f"{label}, {workflow}", split="test", search_limit=config.agent.search_limit)
    logger.info("%s: %s", row["name"], row)
    return {**row, "seconds": round(result.seconds, 2)}


def describe(row: dict[str, Any]) -> str:
    """A row in one line of a log."""
    shares = {"accuracy": "accuracy", "calls": "search_ratio_calls", "needed": "needed_search_ratio", "precision": "search_precision"}
    shares["recall"] = "search_recall"
    parts = [f"{label} {100 * row[key]:.1f} %" for label, key in shares.items() if row[key] is not None]
    return f"{row['name']}: {', '.join(parts)} ({row['questions']} questions)"
