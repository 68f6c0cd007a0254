"""Evaluation while training goes on, and the best model so far in the folder `best` of the run.

Promises
- A step has one life's rows: those of a run that goes back to an earlier step are dropped (`went_back`) and measured anew when it comes there.
- `best` is a whole model folder at every moment from the first evaluation on, with best.json beside the weights. No later
  checkpoint prunes it, and it only ever gives way to a better one.
- Nothing that breaks here ends the training: the step is left without its rows, or `best` as it was, and that is told.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayError

from mmsr_ray.config import Config
from mmsr_ray.data.schema import DataError
from mmsr_ray.evaluation.rows import forget_after, measure_rows
from mmsr_ray.learner.durable import NotWritten, recover_folder
from mmsr_ray.learner.group import LearnerError
from mmsr_ray.tools.errors import BudgetSpent

logger = logging.getLogger(__name__)

BEST = "best"
BEST_FILE = "best.json"
TEXTS = ("name", "split", "step", "weight_version")  # of a row: what is no measurement

Row = Mapping[str, Any]


def label_of(step: int) -> str:
    return f"at step {step}"


def rank_of(row: Row) -> tuple[float, float, int]:
    """The greater the better: accuracy, then fewer searches, then earlier."""
    return row["accuracy"], -row["searches_per_question"], -row["step"]


def better(row: Row, best: Row | None, *, lost: float) -> bool:
    """Is `row` better than the best so far (None: there is none)? Never where nothing was measured, or more than the share `lost` of it failed."""
    asked = row["questions"] + row["infra_errors"]
    if row["accuracy"] is None or row["infra_errors"] > lost * asked:
        return False
    return best is None or rank_of(row) > rank_of(best)


class DuringTraining:
    """Of one GRPO. `export(folder, files)` writes the learner's current model to a folder, with further files in it."""

    def __init__(self, config: Config, folder: Path, export: Callable[[Path, dict[str, bytes]], None]) -> None:
        section = config.evaluation
        fewer = replace(section, questions=section.questions_during, workflows=section.workflows_during)
        self._config = replace(config, evaluation=fewer)
        self._every, self._folder, self._export = section.every_steps, folder, export
        recover_folder(folder / BEST)

    def due(self, step: int) -> bool:
        return self._every > 0 and step > 0 and step % self._every == 0

    def went_back(self, step: int) -> None:
        """The run goes on from the end of `step`. The best model stays: it is what best.json says, whichever life it is of."""
        forget_after(self._folder, step)

    def record(self, step: int, version: int, actors: Callable[[], Sequence[ActorHandle]]) -> dict[str, Any]:
        """The group `evaluation` of the step's record: {workflow: numbers, "best_accuracy", "best_step"}, and "seconds".

        `version` is that of the weights that the runners whom `actors` finds hold. {"failed": 1.0, "seconds"} where it did not work out.
        """
        began = time.monotonic()
        try:
            numbers = self._measured(step, version, actors())
        except (BudgetSpent, LearnerError, RayError, OSError, DataError) as error:
            logger.error("step %d is left without an evaluation: %s", step, error)
            numbers = {"failed": 1.0}
        return numbers | {"seconds": time.monotonic() - began}

    def _measured(self, step: int, version: int, actors: Sequence[ActorHandle]) -> dict[str, Any]:
        rows = measure_rows(self._config, actors, label_of(step), self._folder, {"step": step, "weight_version": version})
        best = self.best()
        if better(rows[0], best, lost=self._config.rollout.infra_alarm_rate):
            best = self._keep(rows[0]) or best
        numbers = {
            workflow: {key: value for key, value in row.items() if key not in TEXTS}
            for workflow, row in zip(self._config.evaluation.workflows, rows, strict=True)
        }
        return numbers | ({"best_accuracy": best["accuracy"], "best_step": best["step"]} if best else {})

    def best(self) -> dict[str, Any] | None:
        """best.json; None before the first evaluation."""
        file = self._folder / BEST / BEST_FILE
        return json.loads(file.read_text()) if file.is_file() else None

    def _keep(self, row: Row) -> dict[str, Any] | None:
        """Export the model as the best; None where that failed."""
        try:
            self._export(self._folder / BEST, {BEST_FILE: json.dumps(row, indent=2).encode()})
        except (NotWritten, LearnerError) as error:  # a learner that is broken is mended at its next update
            logger.error("the best model so far, of step %d, is not kept: %s", row["step"], error)
            return None
        logger.info("step %d is the best so far: accuracy %.3f", row["step"], row["accuracy"])
        return dict(row)
