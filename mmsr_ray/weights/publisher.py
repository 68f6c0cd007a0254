"""The learner's side of a weight update: named tensors in, buckets of bytes out. Pure; no Ray.

Promise: a bucket holds its bytes until the next one is asked for, and not longer. Whoever hands it on copies it before
(Ray does when a bucket is put or yielded), so the bytes in the object store never change under a reader, and each byte
is copied at most once on the way to that copy: into one staging buffer that is used again and again, because memory that
is new costs more than the copy into it (its pages are cleared one by one). Tensors travel as uint8 views, which Ray
stores out of band and hands to readers without a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

ALIGNMENT = 64  # bytes; a tensor in the staging buffer starts at a multiple, whatever its dtype


class Packed(NamedTuple):
    """One tensor in a bucket. `data` is uint8 [bytes]; `dtype` is torch's name of it ("bfloat16").

    `checksum` is None where none was asked for: to sum costs about as much as to copy.
    """

    data: np.ndarray
    dtype: str
    shape: tuple[int, ...]
    checksum: int | None

    def tensor(self) -> torch.Tensor:
        """The tensor, sharing memory with `data`: read it, never write to it."""
        return torch.from_numpy(self.data).view(getattr(torch, self.dtype)).view(self.shape)


Bucket = dict[str, Packed]


class Staging:
    """Host memory that buckets are packed in, one after the other. `pinned` speeds up copies from a GPU."""

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)

    def reserve(self, size: int) -> None:
        """Room for `size` bytes; what was handed out before stays alive, but is no part of it any more."""
        if self._memory.numel() < size:
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)

    def room(self, start: int, size: int) -> torch.Tensor:
        """uint8 [size], uninitialised."""
        return self._memory[start : start + size]


def buckets(
    named_tensors: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype | None,
    bucket_bytes: int,
    *,
    lasting: bool = False,
    checksums: bool = True,
    staging: Staging | None = None,
) -> Iterator[Bucket]:
    """Group tensors into buckets of at most `bucket_bytes`; a larger tensor makes a bucket of its own.

    `named_tensors` may be a generator whose tensors live only until the next one is asked for (gathered ZeRO-3 shards);
    `lasting` says that they live as long as their bucket, and then those that need no change of dtype, order or device
    are not copied at all. Floating tensors are cast to `dtype` on their device, None keeps theirs. Give the same `staging`
    to every publish: the buffer is then made once. Raises ValueError for a name that comes twice.
    """
    staging = staging or Staging()
    seen: set[str] = set()
    bucket: Bucket = {}
    size = used = 0  # bytes of the bucket; of the staging buffer
    for name, tensor in named_tensors:
        if name in seen:
            raise ValueError(f"weight {name} was published twice")
        seen.add(name)
        tensor = tensor.detach()
        target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        nbytes = tensor.numel() * target.itemsize
        if bucket and size + nbytes > bucket_bytes:
            yield bucket
            bucket, size, used = {}, 0, 0
        if lasting and _ready(tensor, target):
            data = tensor.flatten().view(torch.uint8)
        else:
            if used and used + nbytes > bucket_bytes:  # what alignment adds up to
                yield bucket
                bucket, size, used = {}, 0, 0
            if not used:
                staging.reserve(max(nbytes, bucket_bytes))
            data = _copied(tensor, target, staging.room(used, nbytes))
            used += _aligned(nbytes)
        array = data.numpy()
        bucket[name] = Packed(array, str(target).removeprefix("torch."), tuple(tensor.shape), checksum(array) if checksums else None)
        size += nbytes
    if bucket:
        yield bucket


def _ready(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == dtype and tensor.is_contiguous()


def _copied(tensor: torch.Tensor, dtype: torch.dtype, room: torch.Tensor) -> torch.Tensor:
    """`room`, holding the tensor in `dtype`, in row-major order whatever its strides are."""
    room.view(dtype).view(tensor.shape).copy_(tensor)
    return room


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def checksum(data: np.ndarray) -> int:
    """Sum of the bytes as little-endian 64-bit words, modulo 2**64.

    `data` is uint8 [bytes]. It catches torn, truncated and stale buffers, which is what it is for, not tampering.
    """
    whole = data.size // 8 * 8
    total = int(data[:whole].view(np.uint64).sum(dtype=np.uint64)) if whole else 0
    return (total + int.from_bytes(data[whole:].tobytes(), "little")) % 2**64
