"""Run folders as jobs leave them, with evaluations whose answers are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmsr_ray.config import load, to_yaml
from mmsr_ray.evaluation.metrics import measure
from mmsr_ray.evaluation.summary import write_summary
from mmsr_ray.evaluation.trajectories import write_trajectories
from mmsr_ray.rollout.summary import summarise
from mmsr_ray.types import Need, Outcome, Sample, TextHit, TextSearch, ToolKind, ToolResult, Trajectory, Turn
from tests.observability.episodes import episode

FOUND = Turn(
    "<reason>look</reason>", TextSearch("ada"), 9, True, ToolResult(ToolKind.TEXT, "ada", (TextHit("https://ada.example/a", "She.", "A"),))
)
Answers = Mapping[str, tuple[bool | None, bool]]  # by uid: (correct, None where infrastructure broke it; searched)


def answers(pattern: Iterable[tuple[bool | None, bool]]) -> dict[str, tuple[bool | None, bool]]:
    return {f"q{number}": answer for number, answer in enumerate(pattern)}


def answered(uid: str, correct: bool | None, searched: bool, workflow: str = "on_demand") -> tuple[Sample, Trajectory]:
    sample, trajectory = episode(uid, Need.TEXT, bool(correct), (FOUND,) if searched else ())
    trajectory = replace(trajectory, workflow=workflow)
    if correct is None:
        trajectory = replace(trajectory, reward=None, outcome=Outcome.INFRA_ERROR, answer=None, detail="engine: gone")
    return sample, trajectory


def write_run(
    folder: Path, evaluations: Mapping[tuple[str, str], Answers], *, model: str = "ours", overrides: Sequence[str] = (), keep: int = 0
) -> Path:
    """One model; `evaluations` by (benchmark, workflow). `keep`: how many trajectories of each, 0 for all."""
    config = load(None, [f"run.name={folder.name}", "model.path=m", "data.train=a", "data.test=b", *overrides])
    rows: list[dict[str, Any]] = []
    for (benchmark, workflow), given in evaluations.items():
        pairs = [answered(uid, *answer, workflow) for uid, answer in given.items()]
        summaries = [summarise(trajectory, sample) for sample, trajectory in pairs]
        row = measure(summaries, name=f"{model}, {workflow}", split=benchmark, search_limit=2)
        rows.append({**row, "model": model, "benchmark": benchmark, "workflow": workflow})
        write_trajectories(folder / "trajectories" / f"{benchmark}-{workflow}.parquet", pairs[: keep or len(pairs)], split=benchmark)
    write_summary(folder, config=config, seconds={"evaluation": 1.0}, rows=rows)
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder
