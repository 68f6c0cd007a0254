"""What it costs to carry a model's weights from one process to another: measurements for the benchmark job.

Promise: the publishing side packs and yields as `LearnerRank.publish` does, the receiving side pulls as vLLM's worker does;
between them are the real store and Ray's object store. What is left out is a GPU's own copies and vLLM's layers: the
receiver copies every tensor into its own, which is the least that any engine has to do.

Tensors of a kind share memory (`weights_of_shape`), on both sides: a 3B model is then read from and written to hundreds of MiB,
far beyond any cache, and needs no 15 GB beside the object store.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import ray
import torch
from ray.actor import ActorHandle

from mmsr_ray.learner.benchmark import SHAPES, build
from mmsr_ray.learner.trainable import checkpoint_weights
from mmsr_ray.weights.publisher import Bucket, Staging, buckets
from mmsr_ray.weights.store import publish, pull

SECONDS = 120.0  # deadline of every step here
COPIED_BYTES = 256 << 20  # of the reference copy
DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Way:
    """Medians in seconds of one version's way; `bytes` is what it weighs."""

    bytes: int
    publish: float  # tensors to object store, nobody reading
    load: float  # object store to the receiver's tensors, nobody writing
    together: float  # from the first to the last, one bucket after the other
    along: float  # the receiver loads while the rest is being published


def weights_of_shape(size: str, source: torch.dtype = DTYPE) -> dict[str, torch.Tensor]:
    """Real names and shapes of a size of `learner.benchmark.SHAPES`, random values; tensors of a layer share memory with the next one's."""
    shapes = {
        w.name: tuple(w.parameters[0].shape) for w in checkpoint_weights(build(SHAPES[size], torch.device("meta"), checkpointing=False))
    }
    generator = torch.Generator().manual_seed(0)
    kinds: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
    made = {}
    for name, shape in shapes.items():
        kind = ("".join(part for part in name if not part.isdigit()), shape)
        if kind not in kinds:
            kinds[kind] = torch.randn(shape, generator=generator).to(source)
        made[name] = kinds[kind]
    return made


class Source:
    """A learner's rank 0, as far as weights go."""

    def __init__(self, size: str, bucket_bytes: int, source: torch.dtype, lasting: bool) -> None:
        self._weights = weights_of_shape(size, source)
        self._bucket_bytes, self._lasting = bucket_bytes, lasting
        self._staging = Staging()

    def bytes(self) -> int:
        return sum(t.numel() for t in self._weights.values()) * DTYPE.itemsize

    def publish(self) -> Iterator[Bucket]:
        yield from buckets(self._weights.items(), DTYPE, self._bucket_bytes, lasting=self._lasting, checksums=False, staging=self._staging)


class Sink:
    """An engine's worker, as far as weights go."""

    def __init__(self, size: str, store: ActorHandle) -> None:
        self._weights = {name: torch.zeros_like(t) for name, t in weights_of_shape(size).items()}
        self._store = store

    def load(self, version: int) -> None:
        for bucket in pull(self._store, version, SECONDS):
            for name, packed in bucket.items():
                self._weights[name].copy_(packed.tensor())


def way(size: str, store: ActorHandle, *, bucket_bytes: int, rounds: int, source: torch.dtype = DTYPE, lasting: bool = True) -> Way:
    """Seconds from a publisher to a receiver, each a process of its own. Every kind of round runs once unmeasured first.

    `store` must be fresh. In the object store lie at most two versions.
    """
    sender = ray.remote(num_cpus=0)(Source).remote(size, bucket_bytes, source, lasting)
    sink: Any = ray.remote(num_cpus=0)(Sink).remote(size, store)
    version = ray.get(cast(Any, store).latest.remote(), timeout=SECONDS)
    weight: int = ray.get(cast(Any, sender).bytes.remote(), timeout=SECONDS)
    seconds: dict[str, list[float]] = {"publish": [], "load": [], "together": [], "along": []}
    for _ in range(rounds + 1):
        version += 1
        began = time.perf_counter()
        _publish(store, version, sender)
        published = time.perf_counter()
        ray.get(sink.load.remote(version), timeout=SECONDS)
        loaded = time.perf_counter()
        version += 1
        loading = None
        again = time.perf_counter()
        loading = _publish(store, version, sender, sink)
        ray.get(loading, timeout=SECONDS)
        for name, value in zip(seconds, (published - began, loaded - published, loaded - began, time.perf_counter() - again), strict=True):
            seconds[name].append(value)
    for actor in (sender, sink):
        ray.kill(actor)
    return Way(weight, **{name: statistics.median(values[1:]) for name, values in seconds.items()})


def _publish(store: ActorHandle, version: int, sender: Any, sink: Any = None) -> ray.ObjectRef | None:
    """Publish a version, and have the sink load along."""
    loading = None

    def stream() -> Iterator[ray.ObjectRef]:
        nonlocal loading
        loading = None if sink is None else sink.load.remote(version)  # the version is open by now
        yield from sender.publish.options(num_returns="streaming").remote()

    publish(store, version, stream(), SECONDS)
    return loading


def copy_rate(threads: int) -> float:
    """Bytes per second of torch's copy between two buffers beyond all caches, the best of several."""
    kept = torch.get_num_threads()
    torch.set_num_threads(threads)
    source, target = torch.ones(COPIED_BYTES, dtype=torch.uint8), torch.zeros(COPIED_BYTES, dtype=torch.uint8)
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - began)
    torch.set_num_threads(kept)
    return COPIED_BYTES / min(seconds)
