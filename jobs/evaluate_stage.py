"""Rows of results for one model: every workflow over the test questions, on runners that live as long as this stage."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.parts import start_runners
from mmsr_ray.config import Config
from mmsr_ray.data.reader import iter_samples
from mmsr_ray.evaluation.run import evaluate
from mmsr_ray.evaluation.trajectories import write_trajectories

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30.0  # on top of what the agent allows one question


def evaluate_model(config: Config, model: str, label: str, folder: Path, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row per workflow, named "<label>, <workflow>"; a few trajectories of each go to folder/trajectories.

    Raises RunnersLost when the engines do not start.
    """
    config = replace(config, model=replace(config.model, path=model))
    runners = start_runners(config, GRPOConfig.from_config(config), store=None)
    try:
        runners.wait_until_up()
        return [
            _row(config, workflow, label, folder, [runners.actor(i) for i in runners.ids()], note)
            for workflow in config.evaluation.workflows
        ]
    finally:
        runners.stop()


def _row(config: Config, workflow: str, label: str, folder: Path, actors: list[Any], note: Callable[[str], None]) -> dict[str, Any]:
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
    file = folder / "trajectories" / f"{label}-{workflow}.parquet".replace(" ", "_")
    write_trajectories(file, result.kept(), split="test")
    row = result.row(name=f"{label}, {workflow}", split="test", search_limit=config.agent.search_limit)
    note(
        f"{row['name']}: accuracy {_percent(row['accuracy'])}, searching in {_percent(row['search_ratio_responses'])} of {row['questions']} answers"
    )
    return row


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f} %"
