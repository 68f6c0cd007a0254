"""The two stages of search balancing over stage files: labels from rollouts, then the mixture (spec §5.3 step 7).

    searched = label_stage(config, "08_unique.parquet", "09_labels.parquet", folder / journal.FILE)
    mixed = mixture_stage(config, "09_labels.parquet", "10_mixture.parquet")

Promise: each writes its file whole or not at all, with every candidate of the one before, and returns numbers for construction.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.roll_out import roll_out, settings_of
from mmsr_ray.config import Config
from mmsr_ray.data.construction.balance import labelled
from mmsr_ray.data.construction.candidate import read, write
from mmsr_ray.data.construction.journal import Journal
from mmsr_ray.data.construction.mixture import mixed, mixture
from mmsr_ray.data.schema import DataError
from mmsr_ray.types import Need


def label_stage(
    config: Config, source: str | Path, target: str | Path, journal_file: Path, made_from: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Roll out what has no rollouts in the journal yet, and write labels. Needs a running Ray and the tools of the run.

    Raises as `roll_out` does, and DataError when infrastructure left more than `rollout.infra_alarm_rate` of the questions undecided:
    a set without them would be another set. What was rolled out is kept, and submitting again asks the rest.
    """
    with Journal(journal_file, settings_of(config)) as journal:
        done = roll_out(config, lambda: read(source), journal)
        if done.undecided > config.rollout.infra_alarm_rate * done.questions:
            raise DataError(
                f"{done.undecided} of {done.questions} questions have too few rollouts that infrastructure left (rollout.infra_alarm_rate="
                f"{config.rollout.infra_alarm_rate:g}): see that search services and engines are well, and submit again"
            )
        counts = write(target, labelled(read(source), journal.attempts, config.construction.balance), made_from)
    return {
        "candidates": dict(counts),
        "questions_asked": done.asked,
        "undecided": done.undecided,
        "seconds": done.seconds,
        "rollouts_per_second": done.asked * config.construction.balance.rollouts / done.seconds if done.asked else None,
    }


def mixture_stage(config: Config, source: str | Path, target: str | Path, made_from: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Write the mixture. Raises DataError where the ratio cannot be had."""
    needs = {candidate.key: Need(candidate.need) for candidate in read(source, kept=True)}
    found = mixture(needs, config.construction.balance, config.run.seed)
    counts = write(target, mixed(read(source), found.chosen), made_from)
    return {
        "candidates": dict(counts),
        "needs": {need.value: sum(needs[key] is need for key in found.chosen) for need in Need},
        "left_out": {need.value: count for need, count in found.left_out.items()},
    }
