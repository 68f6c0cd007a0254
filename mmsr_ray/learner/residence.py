"""A rank's coming to and going from its device, for learners that share it with an engine.

Promise: after `leave` the device holds nothing of the rank's but what cannot be moved (a CUDA context, kernels), and after
`come_back` training goes on as if it had never left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum

from mmsr_ray.config import LearnerConfig
from mmsr_ray.weights import shared

GIB = 2.0**30
ALL_BUT_WEIGHTS = [state for state in OffloadStateTypeEnum if state is not OffloadStateTypeEnum.lp_params]


class Residence(Protocol):
    def leave(self) -> None: ...

    def leave_all_but_weights(self) -> None:
        """The first half of `leave`, which must follow. Raises NotImplementedError where weights do not stay on the device."""
        ...

    def come_back(self) -> None: ...


class Frozen:
    """Weights that do not learn: below adapters all but those, or a vision tower. DeepSpeed's calls move only what its optimiser knows.

    All are of one dtype.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], device: torch.device) -> None:
        self._parameters, self._device = parameters, device
        self._room: torch.Tensor | None = None  # on the host, in one piece, for torch rounds each page-locked piece up to a power of two

    def leave(self) -> None:
        if not self._parameters:
            return
        sizes = [parameter.numel() for parameter in self._parameters]
        if self._room is None:
            self._room = torch.empty(sum(sizes), dtype=self._parameters[0].dtype, pin_memory=self._device.type == "cuda")
        for parameter, place in zip(self._parameters, self._room.split(sizes), strict=True):
            parameter.data = place.view(parameter.shape).copy_(parameter.data)

    def come_back(self) -> None:
        for parameter in self._parameters:
            parameter.data = parameter.data.to(self._device)


class MovedStates:
    """ZeRO's states move to host memory and back: weights, master weights, gradients and optimiser, as DeepSpeed can, and `frozen`.

    Stages 1 and 2 move all of them; stage 3 those that offload has not put on the host already. Where the device is a CPU
    the same calls copy nothing.
    """

    def __init__(self, engine: Any, frozen: Frozen, device: torch.device) -> None:
        self._engine, self._frozen, self._cuda = engine, frozen, device.type == "cuda"

    def leave(self) -> None:
        self._engine.zero_grad()
        self._engine.offload_states(pin_memory=self._cuda)
        self._frozen.leave()
        shared.let_go()
        if self._cuda:
            torch.cuda.empty_cache()  # DeepSpeed's own came before what was let go since

    def leave_all_but_weights(self) -> None:
        self._engine.zero_grad()
        self._engine.offload_states(include=ALL_BUT_WEIGHTS, pin_memory=self._cuda)

    def come_back(self) -> None:
        self._engine.reload_states()
        self._frozen.come_back()


class AlwaysOnHost:
    """ZeRO-3 with everything offloaded: between steps there is nothing to move, but what torch's allocator holds back."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def leave(self) -> None:
        if self._cuda:
            torch.cuda.empty_cache()

    def leave_all_but_weights(self) -> None:
        raise NotImplementedError("weights that rest in host memory cannot be shared on a card")  # `weights.settings.complaint` comes first

    def come_back(self) -> None:
        pass


def residence(engine: Any, learner: LearnerConfig, device: torch.device) -> Residence:
    """What suits a rank's settings (`colocation.complaint` has refused those that nothing suits)."""
    if learner.offload == "all":
        return AlwaysOnHost(device)
    whole = learner.zero_stage < 3 and device.type == "cuda"  # ZeRO-3 has cut them up with all the others
    frozen = [parameter for parameter in engine.module.parameters() if whole and not parameter.requires_grad]
    return MovedStates(engine, Frozen(frozen, device), device)


def device_memory(device: torch.device) -> dict[str, float]:
    """GiB in use on the whole device by anybody, and the most this process ever had since the last call; {} without a GPU."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return {"used": (total - free) / GIB, "peak": peak / GIB}
