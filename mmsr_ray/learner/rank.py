"""One rank of the learner: a Ray actor that holds a DeepSpeed engine around the policy.

Promise: all ranks of a group call the same methods in the same order (collectives line up); a step whose gradients
are not finite changes nothing and is reported as skipped; a checkpoint folder appears whole or not at all.
"""

from __future__ import annotations

import datetime
import gc
import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import psutil
import ray
import torch
from ray import ObjectRef

from mmsr_ray.config import Config
from mmsr_ray.kernels import bound_kernel_caches
from mmsr_ray.learner import worst_case
from mmsr_ray.learner.batch import Row
from mmsr_ray.learner.chance import random_state, set_random_state
from mmsr_ray.learner.consolidate import TAG
from mmsr_ray.learner.durable import NotWritten, Report, complaint, damage, read_manifest
from mmsr_ray.learner.export import local_folder, write_model
from mmsr_ray.learner.fitting import Room
from mmsr_ray.learner.meter import meter_of
from mmsr_ray.learner.model import Policy, load_policy
from mmsr_ray.learner.objective import longest_answer, resolve
from mmsr_ray.learner.outgoing import Outgoing
from mmsr_ray.learner.pictures import CACHE_BYTES, PatchCache, VisionGeometry
from mmsr_ray.learner.plan import Item, MiniBatch, Portion, UpdatePlan
from mmsr_ray.learner.reference import AdaptersOff, FrozenCopy, Reference
from mmsr_ray.learner.residence import device_memory, residence
from mmsr_ray.learner.settings import on_cuda
from mmsr_ray.learner.shards import ShardWriter, load_own, save_shards
from mmsr_ray.learner.step import collate_portion, contribution, score
from mmsr_ray.learner.tally import Tally
from mmsr_ray.learner.trainable import choose, trained_parameters
from mmsr_ray.learner.zero import deepspeed_config
from mmsr_ray.types import Group, SealedTokens
from mmsr_ray.weights.collective import Meeting
from mmsr_ray.weights.publisher import Bucket

logger = logging.getLogger(__name__)


class RankError(RuntimeError):
    """A rank was asked for something that its state does not allow."""


class OutOfRoom(RankError):
    """The device's memory ran out. Other ranks may wait in a collective for ever: the group must be restarted."""


def _interface_of(address: str) -> str:
    """Name of this machine's network interface that has the address; "" where none has it."""
    return next((name for name, found in psutil.net_if_addrs().items() if any(one.address == address for one in found)), "")


class LearnerRank:
    """Rank `rank` of `config.learner.world_size`. Made by LearnerGroup, which wraps it into a Ray actor."""

    def __init__(self, rank: int, config: Config, model_path: str) -> None:
        self._rank = rank
        self._config = config
        self._model_path = model_path
        self._dtype = torch.bfloat16 if config.learner.dtype == "bfloat16" else torch.float32  # of compute
        self._objective = resolve(config.grpo.loss, longest_answer(config.agent))
        self._reference: Reference | None = None
        self._skipped_in_a_row = 0

    def __repr__(self) -> str:
        return f"learner rank {self._rank} of {self._config.run.name}"  # in Ray's dashboard and logs

    # ------------------------------------------------------------------------------------------------ start

    def address(self) -> tuple[str, int]:
        """Where the other ranks meet this one: its IP and a free port."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind(("", 0))
            return host, probe.getsockname()[1]

    def start(self, host: str, port: int) -> None:
        """Join the process group and build the engine. Blocks until all ranks have."""
        learner = self._config.learner
        # LOCAL_RANK is 0 everywhere: an actor sees its own device only
        if interface := _interface_of(ray.util.get_node_ip_address()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)  # else gloo takes what the host's name stands for: often 127.0.0.1
        os.environ.update(RANK=str(self._rank), LOCAL_RANK="0", WORLD_SIZE=str(learner.world_size), MASTER_ADDR=host, MASTER_PORT=str(port))
        bound_kernel_caches()
        torch.set_num_threads(learner.threads)
        torch.manual_seed(self._config.run.seed)
        cuda = on_cuda(learner)
        self._device = torch.device("cuda", 0) if cuda else torch.device("cpu")
        deepspeed.utils.logger.setLevel(logging.WARNING)
        if not cuda:  # where the first look at this dictionary would run compilers, and warn of every kernel that no nvcc is there for
            # DeepSpeed would compile an all-reduce over shared memory at first use: a minute, to save milliseconds.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        timeout = datetime.timedelta(seconds=max(learner.update_seconds, learner.start_seconds))
        deepspeed.init_distributed("nccl" if cuda else "gloo", timeout=timeout, verbose=False)
        settings = deepspeed_config(self._config)
        # read whole into host memory; ZeRO-3 cuts it up when the engine is built
        policy = load_policy(
            self._model_path,
            dtype=self._dtype,
            gradient_checkpointing=learner.gradient_checkpointing,
            plain_layers=learner.plain_layers,
            fused=learner.fused,
        )
        choose(policy, learner)
        torch.distributed.barrier()  # with our deadline. DeepSpeed's groups have NCCL's ten minutes, and one node may be fetching the model
        optimizer = torch.optim.AdamW(
            trained_parameters(policy), lr=0.0, betas=(learner.betas[0], learner.betas[1]), weight_decay=learner.weight_decay, fused=True
        )
        self._engine: Any = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)[0]
        self._shards = ShardWriter.plug_into(self._engine)
        self._cache = PatchCache(VisionGeometry.load(local_folder(self._model_path)))
        self._meter = meter_of(self._device, ray.get_runtime_context().get_node_id())
        self._outgoing = Outgoing(self._config, policy, self._device, ray.util.get_node_ip_address())
        self._residence = residence(self._engine, learner, self._device)
        gc.collect()
        gc.freeze()  # DeepSpeed collects garbage each time that states move: a second, spent on what was imported

    @property
    def _policy(self) -> Policy:
        return self._engine.module

    # ------------------------------------------------------------------------------------------------ update

    def update(self, plan: UpdatePlan, refs: list[ObjectRef]) -> dict[str, float]:
        """Carry out this rank's part of a plan. `refs[i]` is group i; only the needed ones are fetched."""
        began = time.monotonic()
        needed = plan.groups_of(self._rank)
        fetched: list[Group] = ray.get([refs[i] for i in needed], timeout=self._config.learner.update_seconds)
        self._groups = dict(zip(needed, fetched, strict=True))
        for group in self._engine.optimizer.param_groups:
            group["lr"] = plan.lr
        # the first mini-batch trains on the weights that the others need their old log-probs from: its own are free
        old = [
            [self._score(portion) for portion in mini.ranks[self._rank]] if number else None for number, mini in enumerate(plan.minibatches)
        ]
        references = self._reference_scores(plan)
        tally = Tally(self._device, self._skipped_in_a_row)
        for mini, old_logprobs, reference in zip(plan.minibatches, old, references, strict=True):
            self._step(mini, plan, old_logprobs, reference, tally)
        self._groups = {}
        self._skipped_in_a_row = tally.skipped_in_a_row
        metrics = tally.reduce()
        if metrics["skipped"]:
            logger.warning("rank %d: gradients are not finite, %d optimiser steps were skipped", self._rank, metrics["skipped"])
        metrics |= {"lr": plan.lr, "tokens": float(sum(item.length for item in plan.items)), "seconds": time.monotonic() - began}
        return metrics

    def _reference_scores(self, plan: UpdatePlan) -> Sequence[list[torch.Tensor] | None]:
        """The frozen model's log-probs for every portion of every mini-batch, or None for each where there is no KL term."""
        if self._reference is None or plan.loss != "grpo" or self._objective.kl_coef == 0:
            return [None] * len(plan.minibatches)
        temperature = self._config.rollout.temperature
        with self._reference.awake() as scored:
            return [[scored(self._collate(portion), temperature) for portion in mini.ranks[self._rank]] for mini in plan.minibatches]

    def _step(
        self, mini: MiniBatch, plan: UpdatePlan, old: list[torch.Tensor] | None, reference: list[torch.Tensor] | None, tally: Tally
    ) -> None:
        portions = mini.ranks[self._rank]
        objective = self._objective if plan.loss == "grpo" else None
        for number, portion in enumerate(portions):
            self._engine.set_gradient_accumulation_boundary(number == len(portions) - 1)
            batch = self._collate(portion)
            out = contribution(
                self._engine,
                batch,
                mini,
                objective=objective,
                temperature=self._config.rollout.temperature,
                old=None if old is None else old[number],
                reference=None if reference is None else reference[number],
            )
            # DeepSpeed averages gradients over ranks; the loss is already this rank's share of the sum
            self._engine.backward(out.loss * self._config.learner.world_size, scale_wrt_gas=False)
            tally.add(out.sums, out.maxima)
        if self._finite_gradients():
            self._engine.step()
            skipped = bool(self._engine.optimizer.overflow) if hasattr(self._engine.optimizer, "overflow") else False
        else:
            self._engine.zero_grad()
            skipped = True
        if skipped and self._config.learner.zero_stage == 2 and self._config.learner.offload == "optimizer":
            self._engine.optimizer.averaged_gradients.clear()  # DeepSpeed 0.19 forgets to here, and would add to them for ever
        norm = self._engine.get_global_grad_norm()
        tally.step(0.0 if skipped or norm is None else float(norm), skipped)

    def _finite_gradients(self) -> bool:
        """ZeRO checks in its own step; without it the reduced gradients lie on the parameters, equal on all ranks."""
        if self._config.learner.zero_stage > 0:
            return True
        gradients = [p.grad for p in self._policy.parameters() if p.grad is not None]
        return not gradients or bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))

    def _score(self, portion: Portion) -> torch.Tensor:
        return score(self._engine, self._collate(portion), self._config.rollout.temperature)

    def _collate(self, portion: Portion) -> Any:
        return collate_portion(portion, self._row, self._policy, self._cache).to(self._device)

    def _row(self, item: Item) -> Row:
        return Row(self._groups[item.group].trajectories[item.trajectory].tokens, item.advantage)

    # ------------------------------------------------------------------------------------------------ memory

    def room(self) -> Room:
        """Memory at rest, before the first step."""
        self._meter.reset()
        now = self._meter.now()
        state = self._engine.basic_optimizer.state
        unborn = [p for group in self._engine.basic_optimizer.param_groups for p in group["params"] if p not in state]
        moments = sum(2 * p.numel() * p.element_size() for p in unborn if p.device.type == self._device.type)
        caches = CACHE_BYTES if self._device.type == "cpu" else 0
        return Room(self._meter.place, now.own, now.free, now.total, later=moments + caches)

    def rehearse(self, tokens: int) -> int:
        """Bytes in use at the peak of an update whose micro-batches are the worst of `tokens` tokens. Changes nothing.

        Raises OutOfRoom.
        """
        self._meter.reset()
        limits = worst_case.Limits.of(self._config, self._cache.geometry)
        kept, self._cache = self._cache, PatchCache(self._cache.geometry)
        try:
            for rows in worst_case.batches(limits, tokens, self._policy.token_ids, self._cache.geometry):
                self._rehearse(rows)
        except torch.OutOfMemoryError as error:
            raise OutOfRoom(f"rank {self._rank}: {error}") from None
        finally:
            self._cache = kept
        peak = self._meter.peak()
        self._meter.reset()
        return peak

    def _rehearse(self, rows: list[SealedTokens]) -> None:
        """One step on rows whose advantage is not a number: its gradients are not finite, so it is skipped like any such step.

        The micro-batch comes second: the first, empty, leaves the gradients behind that a later one finds in memory.
        """
        items = tuple(Item(0, i, math.nan, row.length, int(row.loss_mask.sum())) for i, row in enumerate(rows))
        portions = (Portion(()), Portion(items, packed=self._config.learner.packing == "always"))
        mini = MiniBatch((portions,) * self._config.learner.world_size, sum(i.sampled_tokens for i in items), len(items))
        plan = UpdatePlan((mini,), "grpo", 0.0, self._config.learner.world_size)
        self._groups = {0: worst_case.group(rows)}
        (reference,) = self._reference_scores(plan)
        self._step(mini, plan, None, reference, Tally(self._device, 0))
        self._groups = {}

    # ------------------------------------------------------------------------------------------------ weights

    def publish(self, version: int) -> Iterator[Bucket]:
        """Buckets of all weights in the engine's dtype, or of the adapters in the learner's (rank 0; a streaming generator,
        the caller owns what it yields)."""
        logger.info("publishing weights, version %d", version)
        yield from self._outgoing.buckets()

    def meet(self, size: int) -> Meeting:
        """Invite engines' workers to a group of `size`, this rank included (rank 0)."""
        return self._outgoing.meet(size)

    def send(self, transfer: str) -> str:
        """Send what `publish` would to the group (rank 0). Returns why it did not arrive, or "": this rank is well."""
        return self._outgoing.send(transfer)

    def gather_published(self) -> None:
        """The other ranks' side of `publish` and `send`."""
        for _ in self._outgoing.published():
            pass

    def gather(self) -> None:
        """The other ranks' side of `export`."""
        for _ in self._outgoing.weights():
            pass

    def offer(self) -> bytes:
        """Handles of this rank's weights for the engine on its card; all its other states leave the card. `leave` must follow."""
        self._residence.leave_all_but_weights()
        return self._outgoing.offer()

    def set_reference(self) -> None:
        """Freeze the current weights as the KL reference, in the dtype of compute."""
        self._reference = self._reference or self._make_reference()
        self._reference.freeze(self._outgoing.weights())

    def _make_reference(self) -> Reference:
        if self._config.learner.lora.rank > 0:
            return AdaptersOff(self._engine, self._policy)
        learner = self._config.learner
        home = torch.device("cpu") if learner.reference == "host" or learner.colocated else self._device
        return FrozenCopy(lambda: load_policy(self._model_path, dtype=self._dtype), home, self._device)

    # ------------------------------------------------------------------------------------------------ device

    def leave(self) -> dict[str, float]:
        """Give the device to somebody else. Between this and `come_back` only `publish` may be called; memory as it is then."""
        self._residence.leave()
        return device_memory(self._device)

    def come_back(self) -> dict[str, float]:
        """Take the device back. Returns its memory as it was found."""
        found = device_memory(self._device)
        self._residence.come_back()
        return found

    def device_memory(self) -> dict[str, float]:
        return device_memory(self._device)

    # ------------------------------------------------------------------------------------------------ disk

    def save(self, folder: str, attempt: str, extra: dict[str, bytes]) -> Report:
        """Write a checkpoint; all ranks write their shards, rank 0 the rest (`extra` too), and then gives it its name.

        What goes wrong with the disk is in the report, and then nothing is left of the folder.
        """
        extra = extra | {"learner.json": json.dumps(self._signature() | {"reference": self._reference is not None}).encode()}
        reference = self._reference.tensors() if self._reference is not None and self._rank == 0 else {}
        mine = {"random": random_state(), "skipped_in_a_row": self._skipped_in_a_row}
        return save_shards(self._engine, self._shards, Path(folder), attempt, self._rank, mine, reference, extra)

    def check(self, folder: str) -> str:
        """Why this rank's share of a whole checkpoint has not the content that was written; "" when it has."""
        names = sorted(read_manifest(Path(folder)))
        return damage(Path(folder), names[self._rank :: self._config.learner.world_size])

    def load(self, folder: str) -> None:
        """Restore weights, optimiser, KL reference and random state. Raises RankError when the checkpoint is cut short or of another shape."""
        path = Path(folder)
        if not (path / "learner.json").is_file():
            raise RankError(f"{folder} is no learner checkpoint: it has no learner.json")
        if said := complaint(path):
            raise RankError(said)
        found, wanted = json.loads((path / "learner.json").read_text()), self._signature()
        has_reference = found.pop("reference")
        if found != wanted:
            other = ", ".join(
                f"learner.{key} was {found.get(key)!r} and is {wanted[key]!r}" for key in wanted if found.get(key) != wanted[key]
            )
            raise RankError(f"the checkpoint {folder} is of another learner: {other}; set it as it was")
        self._engine.load_checkpoint(str(path), tag=TAG)
        if has_reference:
            self._reference = self._reference or self._make_reference()
            self._reference.load(path)
        mine = load_own(path, self._rank)
        self._skipped_in_a_row = mine["skipped_in_a_row"]
        set_random_state(mine["random"])

    def _signature(self) -> dict[str, Any]:
        """What a checkpoint's files depend on."""
        learner = self._config.learner
        return {
            "world_size": learner.world_size,
            "zero_stage": learner.zero_stage,
            "dtype": learner.dtype,
            "lora": {"rank": learner.lora.rank, "alpha": learner.lora.alpha, "targets": sorted(learner.lora.targets)},
            "freeze_vision": learner.freeze_vision,
        }

    def export(self, folder: str, extra: dict[str, bytes]) -> str:
        """Write a model folder (rank 0), `extra` files in it. Returns why it could not be written, or "": the ranks are well."""
        weights = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self._outgoing.weights()}
        try:
            write_model(Path(folder), local_folder(self._model_path), weights, self._config.learner.dtype, extra)
        except NotWritten as error:
            return str(error)
        return ""
