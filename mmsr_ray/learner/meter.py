"""How much memory this process uses, at rest and at its peak, on the device where it computes.

Promise: `peak` counts everything since `reset` and nothing from before, the process's own share only.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil
import torch
from ray._private.utils import get_system_memory, get_used_memory  # of the container where there is one; Ray's minor version is pinned

_LIBC = ctypes.CDLL(None)
RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs: VmHWM becomes VmRSS


class Memory(NamedTuple):
    """Bytes."""

    own: int
    free: int
    total: int


class Meter(Protocol):
    place: str  # whose memory it is

    def now(self) -> Memory: ...

    def reset(self) -> None:
        """Give back what is only cached, and count peaks from here."""
        ...

    def peak(self) -> int:
        """Most bytes in use since `reset`."""
        ...


class HostMeter:
    """Resident memory of this process (Linux)."""

    def __init__(self, node: str) -> None:
        self.place = node

    def now(self) -> Memory:
        total = get_system_memory()
        free = min(psutil.virtual_memory().available, total - get_used_memory())
        return Memory(psutil.Process().memory_info().rss, free, total)

    def reset(self) -> None:
        gc.collect()
        if hasattr(_LIBC, "malloc_trim"):  # glibc keeps what was freed; another libc may not
            _LIBC.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)

    def peak(self) -> int:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024


class CudaMeter:
    """What torch's allocator holds of a device, fragmentation included; that is what runs out."""

    def __init__(self, node: str, device: torch.device) -> None:
        self._device = device
        self.place = f"{node}/{torch.cuda.get_device_properties(device).uuid}"

    def now(self) -> Memory:
        free, total = torch.cuda.mem_get_info(self._device)
        return Memory(torch.cuda.memory_reserved(self._device), free, total)

    def reset(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_reserved(self._device)


def meter_of(device: torch.device, node: str) -> Meter:
    return CudaMeter(node, device) if device.type == "cuda" else HostMeter(node)
