"""The learner as the driver sees it: a group of DeepSpeed ranks with deadlines.

Promise: a call returns when all ranks are done, or raises LearnerError within its deadline; it never hangs. After a
LearnerError the group is unusable until `restart`: a lone rank never rejoins (its peers' collectives are broken).
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError

from mmsr_ray.config import Config
from mmsr_ray.learner.cost import CostModel
from mmsr_ray.learner.durable import NotWritten, complaint, not_written
from mmsr_ray.learner.fitting import advice, budgets, largest
from mmsr_ray.learner.plan import Item, UpdatePlan, plan_update
from mmsr_ray.learner.settings import on_cuda
from mmsr_ray.nodes import resources
from mmsr_ray.weights.collective import Meeting

logger = logging.getLogger(__name__)

MEASURED_ROWS = 4  # on a CPU: beyond them a straight line tells, for a process that takes too much is killed


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
        self._micro_batch_tokens = config.learner.micro_batch_tokens  # 0 until it is found
        self._cost: CostModel | None = None
        self._has_reference = False

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
            resources=resources(learner.node),
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

    # ------------------------------------------------------------------------------------------------ memory

    def find_micro_batch(self) -> int:
        """Tokens of a micro-batch: found where the config leaves them to be found, tried where it says `probe`. Once.

        Call it before the first update, when whatever else shares the device is up and holds its memory. All ranks carry out
        the worst micro-batches together and this process decides for all. Raises LearnerError with what to do when not even
        one row of agent.max_total_tokens fits.
        """
        learner, longest = self._config.learner, self._config.agent.max_total_tokens
        given = learner.micro_batch_tokens
        if given and (learner.probe == "never" or (learner.probe == "auto" and not on_cuda(learner))):
            return given
        rooms = self._all("room", seconds=learner.start_seconds)
        limits = budgets(rooms, learner.memory_share)

        def need(rows: int) -> float | None:
            """Bytes that the worst-off rank uses above (below: negative) its budget."""
            peaks = self._rehearse(max(rows * longest, given))
            return None if peaks is None else max(peak - limit for peak, limit in zip(peaks, limits, strict=True))

        began = time.monotonic()
        rest = max(room.own - limit for room, limit in zip(rooms, limits, strict=True))
        if given:
            over = need(max(1, given // longest))
            if over is None:
                raise LearnerError(advice(given, learner))
            if over > 0:
                logger.warning(
                    "a micro-batch of learner.micro_batch_tokens=%d needs %.1f GiB above learner.memory_share", given, over / 2**30
                )
            return given
        rows = largest(need, rest=rest, budget=0.0, most=self._most_rows(), measured=None if on_cuda(learner) else MEASURED_ROWS)
        if rows == 0:
            raise LearnerError(advice(longest, learner))
        self._micro_batch_tokens = rows * longest
        logger.info("learner.micro_batch_tokens=%d found in %.1f s", self._micro_batch_tokens, time.monotonic() - began)
        return self._micro_batch_tokens

    def _most_rows(self) -> int:
        """Rows that one rank can have in one optimiser step: a larger micro-batch would never be filled."""
        c = self._config
        step = max(c.grpo.groups_per_step * c.grpo.group_size / c.grpo.minibatches, c.sft.batch_size)
        return math.ceil(step / c.learner.world_size)

    def _rehearse(self, tokens: int) -> list[int] | None:
        """Peak bytes of each rank; None when one ran out of memory. Then the group is new, for its collectives were broken."""
        from mmsr_ray.learner.rank import OutOfRoom

        try:
            return self._all("rehearse", tokens, seconds=self._config.learner.start_seconds)
        except LearnerError as error:
            if not isinstance(error.__cause__, (OutOfRoom, OutOfMemoryError, RayActorError)):
                raise
            logger.info("a micro-batch of %d tokens is too large: the ranks start anew", tokens)
        had_reference = self._has_reference
        self.restart()
        if had_reference:
            self.set_reference()
        return None

    # ------------------------------------------------------------------------------------------------ update

    def plan(self, items: Sequence[Item], *, minibatches: int, loss: str, lr: float) -> UpdatePlan:
        """The plan of an update for this group: its ranks, its micro-batches, and what rows cost its model."""
        if not self._micro_batch_tokens:
            raise LearnerError("learner.micro_batch_tokens=0: find_micro_batch must come before the first update")
        if self._cost is None:
            from transformers import AutoConfig  # with the defaults of what a model's file leaves out

            self._cost = CostModel.of(AutoConfig.from_pretrained(self._model_path).to_dict(), self._config.learner)
        return plan_update(
            items,
            world_size=self._config.learner.world_size,
            micro_batch_tokens=self._micro_batch_tokens,
            minibatches=minibatches,
            packing=self._config.learner.packing,
            loss=loss,
            lr=lr,
            cost=self._cost,
        )

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
        """References to weights.publisher buckets of the current weights, or of the adapters alone (lora.sync), as they come,
        owned by the calling process."""
        seconds = self._config.learner.update_seconds
        deadline = time.monotonic() + seconds
        others = [rank.gather_published.remote() for rank in self._ranks[1:]] if self._config.learner.zero_stage == 3 else []
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

    def meet(self, size: int) -> Meeting:
        """Rank 0 invites `size - 1` engine workers to a group."""
        return self._wait([self._rank_0.meet.remote(size)], self._config.learner.update_seconds, "meet")[0]

    def send(self, transfer: str) -> Callable[[], str]:
        """Begin to send what `publish` would to the group that was met. What is returned waits, and says why it did not arrive, or ""."""
        others = [rank.gather_published.remote() for rank in self._ranks[1:]] if self._config.learner.zero_stage == 3 else []
        sent = self._rank_0.send.remote(transfer)
        return lambda: self._wait([sent, *others], self._config.learner.update_seconds, "send")[0]

    def offer(self, ranks: Sequence[int]) -> list[ObjectRef]:
        """Handles of the weights of these ranks, for the engines on their cards. Their other states leave the cards; `leave` must follow."""
        refs = [self._ranks[rank].offer.remote() for rank in ranks]
        self._wait(refs, self._config.learner.update_seconds, "offer")
        return refs

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
        self._has_reference = True

    def save(self, folder: str | Path, extra: dict[str, bytes] | None = None) -> None:
        """Checkpoint weights, optimiser, KL reference and random state to a folder that all ranks reach; replaces one of that name.

        `extra`: further files of the folder. Raises NotWritten where the disk does not take it; the group goes on then.
        """
        reports = self._all(
            "save", str(Path(folder).absolute()), uuid.uuid4().hex[:8], extra or {}, seconds=self._config.learner.update_seconds
        )
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
        self._has_reference = False

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
