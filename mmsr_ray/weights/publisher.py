"""The learner's side of a weight update: named tensors in, buckets of bytes out. Pure; no Ray.

Promise: a bucket aliases nothing. Every tensor is copied when it arrives, so the caller may free, gather or train the
next moment, and the bytes in the object store never change under a reader. Tensors travel as uint8 views, which Ray
stores out of band and hands to readers without a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch


class Packed(NamedTuple):
    """One tensor in a bucket. `data` is uint8 [bytes]; `dtype` is torch's name of it ("bfloat16")."""

    data: np.ndarray
    dtype: str
    shape: tuple[int, ...]
    checksum: int

    def tensor(self) -> torch.Tensor:
        """The tensor, sharing memory with `data`: read it, never write to it."""
        return torch.from_numpy(self.data).view(getattr(torch, self.dtype)).view(self.shape)


Bucket = dict[str, Packed]


def buckets(named_tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None, bucket_bytes: int) -> Iterator[Bucket]:
    """Group tensors into buckets of at least `bucket_bytes` (the last may be smaller); peak memory is one bucket and a tensor.

    `named_tensors` may be a generator whose tensors live only until the next one is asked for (gathered ZeRO-3 shards).
    Floating tensors are cast to `dtype` on their device, None keeps theirs. Raises ValueError for a name that comes twice.
    """
    seen: set[str] = set()
    bucket: Bucket = {}
    size = 0
    for name, tensor in named_tensors:
        if name in seen:
            raise ValueError(f"weight {name} was published twice")
        seen.add(name)
        bucket[name] = pack(tensor, dtype)
        size += bucket[name].data.nbytes
        if size >= bucket_bytes:
            yield bucket
            bucket, size = {}, 0
    if bucket:
        yield bucket


def pack(tensor: torch.Tensor, dtype: torch.dtype | None) -> Packed:
    """Bytes of a tensor in `dtype`, copied to host memory."""
    tensor = tensor.detach()
    target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    # contiguous_format: a transposed parameter must not keep its strides in the copy
    copied = tensor.to(device="cpu", dtype=target, copy=True, memory_format=torch.contiguous_format)
    data = copied.flatten().view(torch.uint8).numpy()
    return Packed(data, str(target).removeprefix("torch."), tuple(tensor.shape), checksum(data))


def checksum(data: np.ndarray) -> int:
    """Sum of the bytes as little-endian 64-bit words, modulo 2**64; runs at memory speed, so it is always on.

    `data` is uint8 [bytes]. It catches torn, truncated and stale buffers, which is what it is for, not tampering.
    """
    whole = data.size // 8 * 8
    total = int(data[:whole].view(np.uint64).sum(dtype=np.uint64)) if whole else 0
    return (total + int.from_bytes(data[whole:].tobytes(), "little")) % 2**64
