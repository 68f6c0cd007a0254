"""Reinforcement learning as a Tune experiment of one trial: checkpoints, restarts after a crash, resume after a kill."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import GetTimeoutError
from ray.util import remove_placement_group

from mmsr_ray.algorithms.grpo import GRPO
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.parts import bundles
from mmsr_ray.config import Config

logger = logging.getLogger(__name__)

EXPERIMENT = "tune"


class TrainingFailed(RuntimeError):
    """The trial failed more often than grpo.max_failures allows, or found no room."""


def reinforce(config: Config, model: str, folder: Path) -> str:
    """Train `model` for grpo.steps steps and return the folder of the trained one. Goes on where an earlier submission stopped.

    Raises TrainingFailed with the trial's last error.
    """
    # metrics.jsonl and TensorBoard are written by the algorithm itself; Tune's copies would say the same in other files.
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    config = replace(config, model=replace(config.model, path=model))
    _wait_for_room(config)
    results = _tuner(config, folder).fit()
    if results.errors:
        raise TrainingFailed(f"training failed after {config.grpo.max_failures} restarts: {results.errors[0]}") from results.errors[0]
    if (results[0].metrics or {}).get("stopped"):
        raise TrainingFailed(f"training stopped: three optimiser steps in a row were not finite; see {folder}/nonfinite_step_*.parquet")
    return str(folder / "model")


def _tuner(config: Config, folder: Path) -> tune.Tuner:
    space: Any = GRPOConfig.from_config(config)  # Tune takes an AlgorithmConfig for a dict, its types do not say so
    experiment = str(folder / EXPERIMENT)
    if tune.Tuner.can_restore(experiment):
        logger.info("going on with the training in %s", experiment)
        return tune.Tuner.restore(experiment, trainable=GRPO, param_space=space, resume_unfinished=True, resume_errored=True)
    return tune.Tuner(
        GRPO,
        param_space=space,
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=str(folder),
            stop={"finished_steps": config.grpo.steps, "stopped": 1},
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=config.grpo.keep_checkpoints, checkpoint_frequency=config.grpo.checkpoint_every, checkpoint_at_end=True
            ),
            failure_config=tune.FailureConfig(max_failures=config.grpo.max_failures),
            verbose=0,
        ),
    )


def _wait_for_room(config: Config) -> None:
    """Reserve what a trial needs and let it go again: Tune itself would wait for ever where it does not fit.

    A reservation makes an autoscaler add nodes. Raises TrainingFailed after grpo.placement_seconds.
    """
    needed, there = bundles(config).required_resources, ray.cluster_resources()
    lacking = [
        f"{amount:g} {name} (the cluster has {there.get(name, 0):g})" for name, amount in needed.items() if amount > there.get(name, 0)
    ]
    if lacking:
        logger.warning("training needs %s: waiting for nodes to join", ", ".join(lacking))
    reservation = bundles(config)()
    try:
        ray.get(reservation.ready(), timeout=config.grpo.placement_seconds)
    except GetTimeoutError as error:
        raise TrainingFailed(
            f"no room for {dict(needed)} within grpo.placement_seconds={config.grpo.placement_seconds:.0f}: lower rollout.cpus_per_runner, "
            "learner.cpus_per_rank or their gpus, or start Ray with more"
        ) from error
    finally:
        remove_placement_group(reservation)
