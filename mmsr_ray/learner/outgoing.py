"""A rank's weights on their way to engines: as buckets for the object store, straight into their memory, or where they lie.

Promise: what leaves is whole tensors by the names of the model's checkpoint, or adapters alone where `learner.lora.sync` says so; in the engines'
dtype, but for adapters and for what is shared as it lies. Under ZeRO-3 a tensor lives until the next one is asked for, and asking is a collective: whatever goes
wrong with receivers, it is asked for to the end, so that no other rank is left waiting.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator

import deepspeed
import torch
from torch.distributed import TCPStore

from mmsr_ray.config import Config
from mmsr_ray.learner.model import Policy
from mmsr_ray.learner.trainable import adapter_of, adapters, checkpoint_weights
from mmsr_ray.weights import shared
from mmsr_ray.weights.collective import CollectiveFailed, Group, Meeting, open_store
from mmsr_ray.weights.publisher import Bucket, Staging, buckets

logger = logging.getLogger(__name__)

Tensors = Iterator[tuple[str, torch.Tensor]]


class Outgoing:
    """Of one rank. `host` is the address at which others reach it. Raises ValueError where the environment forbids what is set."""

    def __init__(self, config: Config, policy: Policy, device: torch.device, host: str) -> None:
        if config.learner.transport == "ipc" and device.type == "cuda" and (said := shared.complaint(os.environ)):
            raise ValueError(said)
        self._learner, self._model = config.learner, config.model
        self._policy, self._device, self._host = policy, device, host
        self._staging = Staging(pinned=device.type == "cuda")
        self._published = False
        self._meeting: tuple[Meeting, TCPStore] | None = None
        self._group: Group | None = None

    def weights(self) -> Tensors:
        """Whole tensors by checkpoint name, each valid until the next is asked for. A collective under ZeRO-3."""
        for weight in checkpoint_weights(self._policy):
            with deepspeed.zero.GatheredParameters(list(weight.parameters), enabled=self._learner.zero_stage == 3):
                yield weight.name, weight.value()

    def _adapters(self) -> Tensors:
        """The adapters' tensors, like `weights`."""
        for name, layer, parameters in adapters(self._policy):
            with deepspeed.zero.GatheredParameters(list(parameters), enabled=self._learner.zero_stage == 3):
                yield from adapter_of(layer).named(name)

    def published(self) -> Tensors:
        """What engines are sent: all weights, or the adapters alone."""
        return self._adapters() if self._learner.lora.sync == "adapter" else self.weights()

    @property
    def _dtype(self) -> torch.dtype | None:
        """In which floating tensors leave; adapters stay in the learner's."""
        return None if self._learner.lora.sync == "adapter" else getattr(torch, self._model.dtype)

    # ------------------------------------------------------------------------------------------------ object store

    def buckets(self) -> Iterator[Bucket]:
        """Everything published, in buckets; a bucket lives until the next is asked for. Checksums come with the first version."""
        lasting, checksums = self._learner.zero_stage < 3, not self._published
        yield from buckets(
            self.published(), self._dtype, self._learner.bucket_bytes, lasting=lasting, checksums=checksums, staging=self._staging
        )
        self._published = True  # engines verify the first version; the others have come the same way

    # ------------------------------------------------------------------------------------------------ straight to the engines

    def meet(self, size: int) -> Meeting:
        """Rank 0 invites `size - 1` engine workers to a new group; the last one is left."""
        self._leave_group()
        store = open_store(self._host, self._learner.transport_seconds)
        meeting = Meeting(uuid.uuid4().hex[:8], self._host, store.port, size, self._learner.transport_seconds)
        self._meeting = meeting, store
        return meeting

    def send(self, transfer: str) -> str:
        """Everything published to the group that was met; why it did not arrive, or "". Blocks until all have it, or one is missing."""
        tensors = self.published()
        try:
            self._joined().send(transfer, tensors, self._dtype)
        except CollectiveFailed as error:
            self._leave_group()
            return str(error)
        finally:
            for _ in tensors:
                pass  # the other ranks are in it
        return ""

    def _leave_group(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None

    def _joined(self) -> Group:
        if self._group is None:
            if self._meeting is None:
                raise CollectiveFailed("nobody was invited")
            meeting, store = self._meeting
            self._meeting = None  # a group forms once
            self._group = Group(meeting, 0, self._device, host=self._host, store=store)
        return self._group

    # ------------------------------------------------------------------------------------------------ where they lie

    def offer(self) -> bytes:
        """Handles of this rank's own weights (`weights.shared`), for the engine on its card."""
        return shared.offer(self.weights())
