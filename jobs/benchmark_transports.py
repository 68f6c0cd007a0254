"""An update of one real engine by each transport: how long it takes, and how long the engine stands still.

The learner's side is an actor with the same tensors, on a card of its own where there are cards (on the engine's card for `ipc`). What is measured
is the engine's: from the call to its answer. By the object store a version lies there before; by the others the sender is asked at the same time.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import ray
import torch
from safetensors.torch import load_file

from jobs.benchmark_rows import row
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.parts import start_runners
from mmsr_ray.config import Config
from mmsr_ray.weights import shared
from mmsr_ray.weights.collective import Group, Invitation, Meeting, open_store
from mmsr_ray.weights.publisher import buckets
from mmsr_ray.weights.store import start_store

SECONDS = 300.0
UPDATES = 5
SHARE = 0.6  # of its card for the engine: a sender on the same one holds the weights too, 15.4 GiB of a 7B, which 0.8 of an H100 leaves no room for
DESCRIPTIONS = {
    "object_store": "through the object store, published before",
    "collective": "sent by the learner, NCCL between cards and gloo between hosts",
    "ipc": "from the learner's own memory",
}

Seconds = tuple[float, float]  # of an update as a whole, and of standing still in it


class NotAvailable(RuntimeError):
    """Why something cannot be measured here."""


class Sender:
    """A learner's rank 0, as far as weights go: those of a model's folder, on its device."""

    def __init__(self, model: str, *, cuda: bool) -> None:
        self._device = torch.device("cuda", 0) if cuda else torch.device("cpu")
        self._weights = load_file(Path(model, "model.safetensors"), device=str(self._device))
        self._group: Group | None = None

    def meet(self) -> Meeting:
        host = ray.util.get_node_ip_address()
        self._store = open_store(host, SECONDS)
        self._meeting = Meeting(uuid.uuid4().hex[:8], host, int(self._store.port), 2, SECONDS)
        return self._meeting

    def send(self, transfer: str) -> None:
        if self._group is None:
            self._group = Group(self._meeting, 0, self._device, host=self._meeting.host, store=self._store)
        self._group.send(transfer, self._weights.items(), None)

    def offer(self) -> bytes:
        return shared.offer(self._weights.items())

    def buckets(self, size: int) -> Iterator[Any]:
        yield from buckets(self._weights.items(), None, size, checksums=False)


def transport_rows(config: Config, size: str, suite: str) -> list[dict[str, Any]]:
    """For every transport a row of the update and one of its pause; one that cannot be measured here says why."""
    rows = []
    for transport, description in DESCRIPTIONS.items():
        label = f"of an engine of the Qwen2.5-VL-{size.upper()} shape, {description}"
        try:
            found = measured(config, transport)
        except NotAvailable as error:
            rows.append({"name": f"weight update, {transport}", "not_available": str(error)})
            continue
        total, pause = (statistics.median(seconds) for seconds in zip(*found, strict=True))
        rows.append(row(f"seconds of a weight update {label}", total, "s", "its pause", pause, suite))
        rows.append(row(f"seconds that a weight update stands still {label}", pause, "s", "the goal", 1.0, suite))
    return rows


def measured(config: Config, transport: str) -> list[Seconds]:
    """Of UPDATES updates, after one that does not count. Raises NotAvailable."""
    cuda = config.rollout.gpus_per_runner > 0
    if cuda and transport == "collective" and ray.cluster_resources().get("GPU", 0) < 2:
        raise NotAvailable("NCCL has no two members on one card, and this machine has no second")
    name = f"transport-{transport}-{uuid.uuid4().hex[:8]}"
    here = replace(
        config,
        learner=replace(config.learner, colocated=transport == "ipc"),
        rollout=replace(config.rollout, gpu_memory_utilization=min(SHARE, config.rollout.gpu_memory_utilization)),
    )
    gpus = 0.0 if not cuda else 1.0 if transport == "collective" else 0.5
    sender: Any = ray.remote(num_cpus=0, num_gpus=gpus)(cast(Any, Sender)).remote(config.model.path, cuda=cuda)
    store: Any = start_store(name, config.run.namespace)
    try:
        ray.get(sender.__ray_ready__.remote(), timeout=SECONDS)  # vLLM measures what is free on the device while it starts
        with one_runner(here, name) as actor:
            update: Callable[[int], Seconds] = {"object_store": _by_store, "collective": _by_collective, "ipc": _by_ipc}[transport](
                actor, sender, store, config.learner.bucket_bytes
            )
            return [update(version) for version in range(UPDATES + 1)][1:]
    finally:
        ray.kill(sender)
        ray.kill(store)


def _by_store(actor: Any, sender: Any, store: Any, bucket_bytes: int) -> Callable[[int], Seconds]:
    owned = []

    def update(version: int) -> Seconds:
        refs = list(sender.buckets.options(num_returns="streaming").remote(bucket_bytes))
        ray.get(store.publish.remote(version, refs), timeout=SECONDS)
        owned[:-1], owned[-1:] = [], [refs]
        return _synced(actor.sync_weights.remote(version))

    return update


def _by_collective(actor: Any, sender: Any, store: Any, bucket_bytes: int) -> Callable[[int], Seconds]:
    meeting: Any = ray.get(sender.meet.remote(), timeout=SECONDS)

    def update(version: int) -> Seconds:
        sent = sender.send.remote(f"{version}")
        seconds = _synced(actor.sync_weights.remote(version, Invitation(meeting, 1, f"{version}")))
        ray.get(sent, timeout=SECONDS)
        return seconds

    return update


def _by_ipc(actor: Any, sender: Any, store: Any, bucket_bytes: int) -> Callable[[int], Seconds]:
    def update(version: int) -> Seconds:
        began = time.perf_counter()
        handles = sender.offer.remote()
        ray.get(actor.leave_device.remote(), timeout=SECONDS)
        left = time.perf_counter()
        ray.get(actor.load_weights.remote(version, handles), timeout=SECONDS)
        ray.get(actor.sync_weights.remote(version), timeout=SECONDS)
        return time.perf_counter() - began, time.perf_counter() - left

    return update


def _synced(call: ray.ObjectRef) -> Seconds:
    seconds = ray.get(call, timeout=SECONDS)
    return seconds["total"], seconds["total"] - seconds["wait"]


@contextmanager
def one_runner(config: Config, store: str | None) -> Iterator[Any]:
    """A runner that is up; None for the weights of the model folder."""
    runners = start_runners(config, GRPOConfig.from_config(config), store=store)
    try:
        runners.wait_until_up()
        yield runners.actor(runners.ids()[0])
    finally:
        runners.stop()
