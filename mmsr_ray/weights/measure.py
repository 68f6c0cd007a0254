"""What it costs to carry a model's weights from one process to another: measurements for the benchmark job.

Promise: the publishing side packs and yields as `LearnerRank.publish` does, the receiving side pulls as vLLM's worker does;
between them are the real store and Ray's object store. What is left out is a GPU's own copies and vLLM's layers: the
receiver copies every tensor into its own, which is the least that any engine has to do.

Tensors of a kind share memory (`weights_of_shape`), on both sides: a 3B model is then read from and written to hundreds of MiB,
far beyond any cache, and needs no 15 GB beside the object store.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import ray
import torch
from ray.actor import ActorHandle

from mmsr_ray.head import stored_bytes
from mmsr_ray.learner.benchmark import build
from mmsr_ray.learner.shapes import SHAPES
from mmsr_ray.learner.trainable import checkpoint_weights
from mmsr_ray.weights.publisher import Bucket, Staging, buckets
from mmsr_ray.weights.store import publish, pull

SECONDS = 120.0  # deadline of every step here
COPIED_BYTES = 256 << 20  # of the reference copy
DTYPE = torch.bfloat16
VERSION = 0  # the only one of each store
FEW_BYTES = 16 << 20  # in the object store when nothing of weight is


@dataclass(frozen=True, slots=True)
class Way:
    """Medians in seconds of one version's way; `bytes` is what it weighs."""

    bytes: int
    publish: float  # tensors to object store, nobody reading
    load: float  # object store to the receiver's tensors, nobody writing
    together: float  # from the first to the last, one bucket after the other
    along: float  # the receiver loads while the rest is being published


def _shapes(size: str) -> dict[str, tuple[int, ...]]:
    policy = build(SHAPES[size], torch.device("meta"), checkpointing=False)
    return {weight.name: tuple(weight.parameters[0].shape) for weight in checkpoint_weights(policy)}


def version_bytes(size: str) -> int:
    """What a version of a size weighs in DTYPE."""
    return sum(math.prod(shape) for shape in _shapes(size).values()) * DTYPE.itemsize


def weights_of_shape(size: str, source: torch.dtype = DTYPE) -> dict[str, torch.Tensor]:
    """Real names and shapes of a size of `learner.benchmark.SHAPES`, random values; tensors of a layer share memory with the next one's."""
    generator = torch.Generator().manual_seed(0)
    kinds: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
    made = {}
    for name, shape in _shapes(size).items():
        kind = ("".join(part for part in name if not part.isdigit()), shape)
        if kind not in kinds:
            kinds[kind] = (0.02 * torch.randn(shape, generator=generator)).to(source)
        made[name] = kinds[kind]
    return made


class Source:
    """A learner's rank 0, as far as weights go."""

    def __init__(self, size: str, bucket_bytes: int, source: torch.dtype, lasting: bool) -> None:
        self._weights = weights_of_shape(size, source)
        self._bucket_bytes, self._lasting = bucket_bytes, lasting
        self._staging = Staging()

    def publish(self) -> Iterator[Bucket]:
        yield from buckets(self._weights.items(), DTYPE, self._bucket_bytes, lasting=self._lasting, checksums=False, staging=self._staging)


class Sink:
    """An engine's worker, as far as weights go."""

    def __init__(self, size: str) -> None:
        self._weights = weights_of_shape(size)  # any of the right sizes, and memory shared as on the other side

    def load(self, store: ActorHandle) -> None:
        for bucket in pull(store, VERSION, SECONDS):
            for name, packed in bucket.items():
                self._weights[name].copy_(packed.tensor())


def way(
    size: str,
    new_store: Callable[[], ActorHandle],
    *,
    bucket_bytes: int,
    rounds: int,
    source: torch.dtype = DTYPE,
    lasting: bool = True,
) -> Way:
    """Seconds from a publisher to a receiver, each a process of its own. Every kind of round runs once unmeasured first.

    Each round has a store of its own and waits until the version before has left memory: one version lies there at a time.
    """
    sender: Any = ray.remote(num_cpus=0)(cast(Any, Source)).remote(size, bucket_bytes, source, lasting)
    sink: Any = ray.remote(num_cpus=0)(cast(Any, Sink)).remote(size)
    seconds: dict[str, list[float]] = {"publish": [], "load": [], "together": [], "along": []}
    for _ in range(rounds + 1):
        with _empty_store(new_store) as store:
            began = time.perf_counter()
            _publish(store, sender)
            published = time.perf_counter()
            ray.get(sink.load.remote(store), timeout=SECONDS)
            seconds["publish"].append(published - began)
            seconds["load"].append(time.perf_counter() - published)
            seconds["together"].append(time.perf_counter() - began)
        with _empty_store(new_store) as store:
            began = time.perf_counter()
            ray.get(_publish(store, sender, sink), timeout=SECONDS)
            seconds["along"].append(time.perf_counter() - began)
    for actor in (sender, sink):
        ray.kill(actor)
    return Way(version_bytes(size), **{kind: statistics.median(values[1:]) for kind, values in seconds.items()})


@contextmanager
def _empty_store(new_store: Callable[[], ActorHandle]) -> Iterator[ActorHandle]:
    """A store that answers; at the end it and what was published are gone."""
    store = new_store()
    ray.get(cast(Any, store).latest.remote(), timeout=SECONDS)
    yield store
    ray.kill(store)
    deadline = time.monotonic() + SECONDS
    while stored_bytes() > FEW_BYTES:
        if time.monotonic() > deadline:
            raise TimeoutError(f"a version was still in the object store {SECONDS:.0f} s after it was dropped")
        time.sleep(0.1)


def _publish(store: ActorHandle, sender: Any, sink: Any = None) -> list[ray.ObjectRef]:
    """Publish a version, and have the sink load along; its calls."""
    loading: list[ray.ObjectRef] = []

    def stream() -> Iterator[ray.ObjectRef]:
        if sink is not None:
            loading.append(sink.load.remote(store))  # the version is open by now
        yield from sender.publish.options(num_returns="streaming").remote()

    publish(store, VERSION, stream(), SECONDS)
    return loading


def copy_rate() -> float:
    """Bytes per second of torch's copy between two buffers beyond all caches: the best of several, with one thread or with all cores."""
    kept = torch.get_num_threads()
    source, target = torch.ones(COPIED_BYTES, dtype=torch.uint8), torch.zeros(COPIED_BYTES, dtype=torch.uint8)
    seconds = []
    for threads in (1, os.cpu_count() or 1) * 8:
        torch.set_num_threads(threads)
        began = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - began)
    torch.set_num_threads(kept)
    return COPIED_BYTES / min(seconds)
