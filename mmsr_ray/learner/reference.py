"""The frozen model of the KL term, in as little memory as the settings allow.

Promise: `scores` gives the log-probs of the weights that the run started from, whatever has been trained since.

With adapters it is the policy itself with its adapters off. Otherwise it is a second model: on the device, or in host
memory from where it visits the device once an update (learner.reference=host).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch

from mmsr_ray.learner.batch import MicroBatch
from mmsr_ray.learner.model import Policy, named_weights
from mmsr_ray.learner.step import Scorer, score
from mmsr_ray.learner.trainable import reference_mode

FILE = "reference.pt"


class Reference(Protocol):
    """Freeze once with `freeze`, then score inside `awake`."""

    def freeze(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take these weights, by checkpoint name. All ranks call it together."""
        ...

    def awake(self) -> AbstractContextManager[Callable[[MicroBatch, float], torch.Tensor]]:
        """Inside, a function of (batch, temperature) to log-probs, float32 [S], without gradient."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold of it, for its file FILE; empty where there is nothing to keep."""
        ...

    def load(self, folder: Path) -> None:
        """Take `tensors` back from FILE in a checkpoint's folder, where it is there."""
        ...


class AdaptersOff:
    """The policy without its adapters: base weights never change, so there is nothing to keep."""

    def __init__(self, engine: Scorer, policy: Policy) -> None:
        self._engine, self._policy = engine, policy

    def freeze(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        for _ in weights:  # the other ranks gather along
            pass

    @contextmanager
    def awake(self) -> Iterator[Callable[[MicroBatch, float], torch.Tensor]]:
        with reference_mode(self._policy):
            yield lambda batch, temperature: score(self._engine, batch, temperature)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def load(self, folder: Path) -> None:
        pass


class FrozenCopy:
    """A second model. `home` is where it rests, `device` where it scores. It stays whole at home: nothing is copied back."""

    def __init__(self, make: Callable[[], Policy], home: torch.device, device: torch.device) -> None:
        self._policy = make().to(home).requires_grad_(False).eval()
        self._device = device

    def freeze(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        target = named_weights(self._policy)
        for name, tensor in weights:
            target[name].data.copy_(tensor)

    @contextmanager
    def awake(self) -> Iterator[Callable[[MicroBatch, float], torch.Tensor]]:
        at_home = [
            (module, name, tensor, tensor.data)
            for module in self._policy.modules()
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        ]
        self._policy.to(self._device)
        try:
            yield lambda batch, temperature: score(self._policy, batch, temperature)
        finally:
            for module, name, tensor, data in at_home:
                tensor.data = data
                setattr(module, name, tensor)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: p.data for name, p in named_weights(self._policy).items()}

    def load(self, folder: Path) -> None:
        if (folder / FILE).is_file():
            self.freeze(torch.load(folder / FILE, map_location="cpu", mmap=True).items())
