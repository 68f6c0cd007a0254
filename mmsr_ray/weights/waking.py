"""What an engine finds in memory that it gave up when it slept, and that nobody had saved.

Promise: zeros, as in memory that it has just allocated. vLLM leaves open what is there, outside ROCm, and its model runner V2 keeps more
among the weights than weights: positions of padding, with which it looks up rotations, are read and never written. What another process
left behind, read as such a position, ends the engine; read as a key or a value of the cache, it may be NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def wake_to_zeros() -> None:
    """For this process's allocator. Call it where vLLM can sleep; again is harmless."""
    from vllm.device_allocator import cumem

    kind: Any = cumem.CuMemAllocator
    if not hasattr(kind.wake_up, "__wrapped__"):
        kind.wake_up = _with_zeros(kind.wake_up, cumem)


def _with_zeros(wake_up: Callable[..., None], cumem: Any) -> Callable[..., None]:
    @wraps(wake_up)
    def woken(self: Any, tags: list[str] | None = None) -> None:
        lost = [(pointer, data) for pointer, data in self.pointer_to_data.items() if data.is_asleep and data.cpu_backup_tensor is None]
        wake_up(self, tags)
        for pointer, data in lost:
            if not data.is_asleep:
                _, size, *_ = data.handle
                cumem.libcudart.cudaMemset(pointer, 0, size)
        torch.accelerator.synchronize()

    return woken
