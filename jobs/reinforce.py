"""Reinforcement learning as a Tune experiment of one trial: checkpoints, restarts after a crash, resume after a kill."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from jobs.room import wait_for_room
from mmsr_ray.algorithms.grpo import GRPO
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.parts import bundles
from mmsr_ray.config import Config
from mmsr_ray.evaluation.tools import read_tools
from mmsr_ray.preflight.fleet import no_node
from mmsr_ray.tools.errors import BudgetSpent, ToolsError
from mmsr_ray.tools.tape import TapeMiss

logger = logging.getLogger(__name__)

EXPERIMENT = "tune"


class TrainingFailed(RuntimeError):
    """The trial failed more often than grpo.max_failures allows."""


def reinforce(config: Config, model: str, folder: Path) -> str:
    """Train `model` for grpo.steps steps and return the folder of the trained one. Goes on where an earlier submission stopped.

    Raises NoRoom where the cluster has no place for it, TrainingFailed with the trial's last error, and BudgetSpent when tools.budget_usd ends it before its end: with a
    checkpoint, from which a later submission with a higher budget goes on. ToolsError when a replay asks for what its tape lacks.
    """
    paused = _paused_for_money(folder)
    if paused and 0 < config.tools.budget_usd <= paused["budget_usd"]:
        raise BudgetSpent(_go_on(config, paused["steps"]))
    # metrics.jsonl is written by the algorithm itself; Tune's copies would say the same in other files.
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    # Every 10 s it would ask the head what the cluster has, for a line that nobody prints, and wait for ever while the head is away.
    os.environ["TUNE_STATE_REFRESH_PERIOD"] = "inf"
    config = replace(config, model=replace(config.model, path=model))
    wait_for_room(bundles(config), config.grpo.placement_seconds, explain=partial(no_node, config=config))
    results = _tuner(config, folder).fit()
    if results.errors:
        if isinstance(results.errors[0], TapeMiss):
            raise ToolsError(f"the replay ended: {results.errors[0].args[0]}") from None
        raise TrainingFailed(f"training failed after {_restarts(config)} restarts: {results.errors[0]}") from results.errors[0]
    metrics = results[0].metrics or {}
    if metrics.get("stopped"):
        raise TrainingFailed(f"training stopped: three optimiser steps in a row were not finite; see {folder}/nonfinite_step_*.parquet")
    if metrics.get("budget_spent"):
        raise BudgetSpent(_go_on(config, int(metrics["finished_steps"])))
    return str(folder / "model")


def _paused_for_money(folder: Path) -> dict[str, Any] | None:
    """tools.json of a submission that ended because its budget was spent."""
    found = read_tools(folder)
    return found if found and found["stopped"] == "budget" else None


def _go_on(config: Config, step: int) -> str:
    return (
        f"the budget of {config.tools.budget_usd:g} USD is spent after training step {step} of {config.grpo.steps}: "
        "raise tools.budget_usd and submit again, and the run goes on from there"
    )


def _tuner(config: Config, folder: Path) -> tune.Tuner:
    space: Any = GRPOConfig.from_config(config)  # Tune takes an AlgorithmConfig for a dict, its types do not say so
    experiment = str(folder / EXPERIMENT)
    if tune.Tuner.can_restore(experiment):
        logger.info("going on with the training in %s", experiment)
        go_on: Any = tune.ResumeConfig.ResumeType.RESUME  # what Ray annotates as str it compares as these
        finished: Any = go_on if _paused_for_money(folder) else tune.ResumeConfig.ResumeType.SKIP
        resume = tune.ResumeConfig(unfinished=go_on, errored=go_on, finished=finished)
        return tune.Tuner.restore(experiment, trainable=GRPO, param_space=space, _resume_config=resume)
    return tune.Tuner(
        GRPO,
        param_space=space,
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=str(folder),
            stop={"finished_steps": config.grpo.steps, "stopped": 1, "budget_spent": 1},
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=config.grpo.keep_checkpoints, checkpoint_frequency=config.grpo.checkpoint_every, checkpoint_at_end=True
            ),
            failure_config=tune.FailureConfig(max_failures=_restarts(config)),
            verbose=0,
        ),
    )


def _restarts(config: Config) -> int:
    """A replay is not restarted: what its tape lacks now it will lack the next time."""
    return 0 if config.tools.tape.mode == "replay" else config.grpo.max_failures
