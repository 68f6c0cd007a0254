"""The learner as the driver sees it: a group of DeepSpeed ranks with deadlines.

Promise: a call returns when all ranks are done, or raises LearnerError within its deadline; it never hangs. After a
LearnerError the group is unusable until `restart`: a lone rank never rejoins (its peers' collectives are broken).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayError

from mmsr_ray.config import Config
from mmsr_ray.learner.durable import NotWritten, complaint, not_written
from mmsr_ray.learner.plan import UpdatePlan

logger = logging.getLogger(__name__)


class LearnerError(RuntimeError):
    """A rank failed, died or missed its deadline; `restart` the group."""


class LearnerGroup:
    """`config.learner.world_size` ranks around the model at `model_path` (a folder or hub id).

    `actor_options(rank)` goes to that rank's `.options()`, such as a scheduling strategy with its bundle.
    """

    def __init__(self, config: Config, model_path: str, actor_options: Callable[[int], dict[str, Any]] | None = None) -> None:
        self._config = config
        self._model_path = str(Path(model_path).absolute()) if Path(model_path).is_dir() else model_path
        self._actor_options = actor_options or (lambda rank: {})
        self._ranks: list[Any] = []

    @property
    def ranks(self) -> list[Any]:
        """The actors in order of rank; empty before `start` and after `shutdown`."""
        return list(self._ranks)

    def start(self) -> None:
        """Create the ranks and build their engines."""
        from mmsr_ray.learner.rank import LearnerRank  # here, because importing DeepSpeed takes seconds

        if self._ranks:
            raise LearnerError("the learner group runs already: call restart or shutdown")
        learner = self._config.learner
        environment = {"OMP_NUM_THREADS": str(learner.threads), "TOKENIZERS_PARALLELISM": "false"}
        if learner.gpus_per_rank == 0:
            environment["DS_ACCELERATOR"] = "cpu"
        actor = ray.remote(
            num_cpus=learner.cpus_per_rank,
            num_gpus=learner.gpus_per_rank,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": environment},
        )(LearnerRank)
        began = time.monotonic()
        self._ranks = [
            actor.options(**self._actor_options(rank)).remote(rank, self._config, self._model_path) for rank in range(learner.world_size)
        ]
        host, port = self._wait([self._ranks[0].address.remote()], learner.start_seconds, "start")[0]
        self._all("start", host, port, seconds=learner.start_seconds)
        logger.info("learner: %d ranks of ZeRO-%d up in %.1f s", learner.world_size, learner.zero_stage, time.monotonic() - began)

    def update(self, plan: UpdatePlan, group_refs: list[ObjectRef]) -> dict[str, float]:
        """Train on a plan; `group_refs[i]` refers to the types.Group that the plan's items call group i.

        Returns loss, policy_loss, kl, entropy, clip_fraction, mismatch_abs_mean, mismatch_max, correction_mean,
        correction_masked, grad_norm (before clipping), skipped (optimiser steps whose loss or gradients were not
        finite), skipped_in_a_row (the longest row of them that this update saw, earlier updates' included), lr, tokens,
        seconds; means over the plan's mini-batches.
        """
        if plan.world_size != self._config.learner.world_size:
            raise ValueError(f"the plan is for {plan.world_size} ranks, the group has {self._config.learner.world_size}")
        results = self._all("update", plan, list(group_refs), seconds=self._config.learner.update_seconds)
        return results[0] | {"seconds": max(result["seconds"] for result in results)}

    def publish(self, version: int) -> Iterator[ObjectRef]:
        """References to weights.publisher buckets of the current weights, as they come, owned by the calling process."""
        seconds = self._config.learner.update_seconds
        deadline = time.monotonic() + seconds
        others = [rank.gather.remote() for rank in self._ranks[1:]] if self._config.learner.zero_stage == 3 else []
        stream = self._rank_0.publish.options(num_returns="streaming").remote(version)
        while True:
            ready, _ = ray.wait([stream], timeout=max(deadline - time.monotonic(), 0.0), fetch_local=False)
            if not ready:
                raise LearnerError(f"publish of version {version} took longer than {seconds:.0f} s")
            try:
                bucket = next(stream)
            except StopIteration:
                break
            yield bucket
        self._wait([stream.completed(), *others], max(deadline - time.monotonic(), 1.0), "publish")

    def leave(self) -> dict[str, float]:
        """All ranks give their devices to somebody else, until `come_back`. Memory in use then, in GiB; {} without GPUs."""
        return self._fullest("leave")

    def come_back(self) -> dict[str, float]:
        """All ranks take their devices back. Memory in use before, in GiB; {} without GPUs."""
        return self._fullest("come_back")

    def device_memory(self) -> dict[str, float]:
        """Memory in use now, in GiB, by anybody; {} without GPUs."""
        return self._fullest("device_memory")

    def _fullest(self, method: str) -> dict[str, float]:
        found: list[dict[str, float]] = self._all(method, seconds=self._config.learner.update_seconds)
        return {kind: max(memory[kind] for memory in found) for kind in found[0]}

    def set_reference(self) -> None:
        """Make the current weights the frozen model of the KL term. Before the first call the KL term is left out."""
        self._all("set_reference", seconds=self._config.learner.start_seconds)

    def save(self, folder: str | Path, extra: dict[str, bytes] | None = None) -> None:
        """Checkpoint weights, optimiser, KL reference and random state to a folder that all ranks reach; replaces one of that name.

        `extra`: further files of the folder. Raises NotWritten where the disk does not take it; the group goes on then.
        """
        reports = self._all("save", str(Path(folder).absolute()), extra or {}, seconds=self._config.learner.update_seconds)
        if reports[0].error:
            raise not_written(Path(folder), reports[0])

    def check(self, folder: str | Path) -> str:
        """Why a checkpoint cannot be loaded, in one sentence: cut short, or damaged. "" when every byte is as it was written."""
        path = Path(folder).absolute()
        if said := complaint(path):
            return said
        return next((said for said in self._all("check", str(path), seconds=self._config.learner.update_seconds) if said), "")

    def load(self, folder: str | Path) -> None:
        """Restore what `save` wrote."""
        self._all("load", str(Path(folder).absolute()), seconds=self._config.learner.update_seconds)

    def export(self, folder: str | Path, extra: dict[str, bytes] | None = None) -> None:
        """Write a model folder that transformers and vLLM load, with `extra` files in it. Raises NotWritten as `save` does."""
        others = [rank.gather.remote() for rank in self._ranks[1:]] if self._config.learner.zero_stage == 3 else []
        first = self._rank_0.export.remote(str(Path(folder).absolute()), extra or {})
        if said := self._wait([first, *others], self._config.learner.update_seconds, "export")[0]:
            raise NotWritten(said)

    def restart(self, folder: str | Path | None = None) -> None:
        """Kill all ranks and start anew, from a checkpoint if given."""
        self.shutdown()
        self.start()
        if folder is not None:
            self.load(folder)

    def shutdown(self) -> None:
        """Kill the ranks. Allowed at any time."""
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []

    @property
    def _rank_0(self) -> Any:
        if not self._ranks:
            raise LearnerError("the learner group is not running: call start")
        return self._ranks[0]

    def _all(self, method: str, *args: Any, seconds: float) -> list[Any]:
        """Call a method on every rank and wait for all."""
        if not self._ranks:
            raise LearnerError("the learner group is not running: call start")
        return self._wait([getattr(rank, method).remote(*args) for rank in self._ranks], seconds, method)

    @staticmethod
    def _wait(refs: list[ObjectRef], seconds: float, what: str) -> list[Any]:
        try:
            return ray.get(refs, timeout=seconds)
        except GetTimeoutError as error:
            raise LearnerError(f"learner {what} took longer than {seconds:.0f} s") from error
        except RayError as error:
            raise LearnerError(f"learner {what} failed: {error}") from error
