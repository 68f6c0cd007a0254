"""The registry of published weight versions: a named Ray actor that holds references, never bytes.

Promise: the last two versions can be pulled at any time; older ones lose their last reference here and are freed once
no engine reads them. The references are owned by whoever published (the Algorithm), so buckets outlive the rank that
made them. They are passed inside lists: Ray then counts them, where a bare argument would be fetched.

Engines may pull a version while it is being published: they get its buckets as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmsr_ray.weights.publisher import Bucket
from mmsr_ray.weights.versions import NO_VERSION, VERSIONS_KEPT, UnknownVersion, Versions

__all__ = ["NO_VERSION", "VERSIONS_KEPT", "UnknownVersion", "WeightStore", "find_store", "publish", "pull", "start_store", "store_name"]


@ray.remote(num_cpus=0, max_restarts=0)
class WeightStore:
    """`Versions` behind an actor. Not restartable: a store without memory would serve old weights."""

    def __init__(self, engines_let_in: bool = True) -> None:
        self._versions: Versions[ObjectRef] = Versions()
        self._engines_let_in = engines_let_in

    async def begin(self, version: int) -> None:
        self._versions.begin(version)

    async def add(self, version: int, index: int, refs: list[ObjectRef]) -> None:
        """`refs` holds one bucket's reference."""
        self._versions.add(version, index, refs[0])

    async def complete(self, version: int, count: int, manifest: dict[str, Any] | None = None) -> None:
        self._versions.complete(version, count, manifest)

    async def abandon(self, version: int) -> None:
        self._versions.abandon(version)

    async def publish(self, version: int, refs: list[ObjectRef], manifest: dict[str, Any] | None = None) -> int:
        """A whole version at once. `refs` are its buckets in order. Raises ValueError as `Versions` does."""
        self._versions.begin(version)
        for index, ref in enumerate(refs):
            self._versions.add(version, index, ref)
        self._versions.complete(version, len(refs), manifest)
        return version

    async def let_engines_in(self, allowed: bool) -> None:
        """Whether an engine may start: in colocated mode, only while the learner is not on their card."""
        self._engines_let_in = allowed

    async def engines_let_in(self) -> bool:
        return self._engines_let_in

    async def latest(self) -> int:
        return self._versions.latest()

    async def versions(self) -> list[int]:
        return self._versions.versions()

    async def manifest(self, version: int) -> dict[str, Any]:
        return self._versions.manifest(version)

    async def bucket(self, version: int, index: int, seconds: float) -> list[ObjectRef]:
        """One bucket's reference in a list, waited for; an empty list beyond the last. Raises UnknownVersion."""
        found = await self._versions.bucket(version, index, seconds)
        return [] if found is None else [found]


def publish(
    store: ActorHandle, version: int, refs: Iterable[ObjectRef], seconds: float, opened: Callable[[], object] = lambda: None
) -> int:
    """Publish buckets as they come; returns their number. When `refs` raises, the version is given up and readers are told.

    `opened` is called once readers may ask for the version. `seconds` is the store's own deadline, not that of the buckets. Raises RayError, ValueError and whatever `refs` raises.
    """
    ray.get(cast(Any, store).begin.remote(version), timeout=seconds)
    added = []
    try:
        opened()
        for index, ref in enumerate(refs):
            added.append(cast(Any, store).add.remote(version, index, [ref]))
        ray.get(added, timeout=seconds)  # an actor of coroutines may run a later call first
        ray.get(cast(Any, store).complete.remote(version, len(added)), timeout=seconds)
    except BaseException:
        cast(Any, store).abandon.remote(version)
        raise
    return len(added)


def pull(store: ActorHandle, version: int, seconds: float) -> Iterator[Bucket]:
    """The buckets of a version in order; the next one is on its way to this node while the caller loads the last.

    A bucket's memory is mapped, read-only, for as long as somebody refers to it. `seconds` is the deadline of each bucket.
    Raises UnknownVersion, RayError.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights") as pool:
        index = 0
        coming = pool.submit(_fetch, store, version, index, seconds)
        while (bucket := coming.result()) is not None:
            index += 1
            coming = pool.submit(_fetch, store, version, index, seconds)
            yield bucket
            del bucket


def _fetch(store: ActorHandle, version: int, index: int, seconds: float) -> Bucket | None:
    refs = ray.get(cast(Any, store).bucket.remote(version, index, seconds), timeout=seconds)
    return ray.get(refs[0], timeout=seconds) if refs else None


def store_name(run: str) -> str:
    """Name of a run's store, in the run's namespace."""
    return f"weights-{run}"


def start_store(name: str, namespace: str, *, engines_let_in: bool = True) -> ActorHandle:
    """A new, empty store on this node that lives as long as the caller keeps the handle. Raises ValueError where the name is taken."""
    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )  # soft would let it spill to a node that may be lost alone
    options = {"name": name, "namespace": namespace, "scheduling_strategy": here}
    return cast(ActorHandle, WeightStore.options(**options).remote(engines_let_in))


def find_store(name: str, namespace: str) -> ActorHandle:
    """Raises ValueError where no such store runs."""
    return ray.get_actor(name, namespace=namespace)
