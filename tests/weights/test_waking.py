"""vLLM's own allocator, with host memory for pages and without what maps them."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import torch
from vllm.device_allocator import AllocationData, cumem

from mmsr_ray.weights.waking import wake_to_zeros

SIZE = 64


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> cumem.CuMemAllocator:
    """Of which nobody else has the pages: a class of its own, for `wake_to_zeros` changes it for the whole process."""
    monkeypatch.setattr(cumem, "CuMemAllocator", type("OfThisTest", (cumem.CuMemAllocator,), {}))
    monkeypatch.setattr(cumem, "create_and_map", lambda handle: None)
    monkeypatch.setattr(cumem, "libcudart", SimpleNamespace(cudaMemset=ctypes.memset, cudaMemcpy=ctypes.memmove))
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    wake_to_zeros()
    wake_to_zeros()
    return cumem.CuMemAllocator()


def test_what_nobody_saved_is_zero_and_what_was_saved_comes_back(allocator: cumem.CuMemAllocator) -> None:
    pages = {name: torch.full((SIZE,), 7, dtype=torch.uint8) for name in ("weights", "state", "kv_cache", "awake")}
    for name, page in pages.items():
        data = AllocationData((0, SIZE, page.data_ptr(), 0), name, is_asleep=name != "awake")
        if name == "state":
            data.cpu_backup_tensor = torch.full((SIZE,), 5, dtype=torch.uint8)
        allocator.pointer_to_data[page.data_ptr()] = data

    def seen() -> dict[str, set[int]]:
        return {name: set(page.tolist()) for name, page in pages.items()}

    allocator.wake_up(["weights"])
    assert seen() == {"weights": {0}, "state": {5}, "kv_cache": {7}, "awake": {7}}, "pages that are still away are not touched"
    pages["weights"][:] = 3  # loaded
    allocator.wake_up(["kv_cache"])
    assert seen() == {"weights": {3}, "state": {5}, "kv_cache": {0}, "awake": {7}}
