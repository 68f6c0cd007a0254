"""New weights for running engines: the deployment that publishes model folders and says which engine serves what.

Promise: a folder whose weights are not of the served model's names, shapes and dtypes is refused before any engine hears of
it. Engines ask (`wanted`), nobody tells them, so a new or restarted engine gets the newest proven weights like all others.
When this process is lost, the engines' own reports bring back what they serve.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from safetensors import SafetensorError, safe_open

from mmsr_ray.config import Config, from_dict
from mmsr_ray.serving.canary import Canary
from mmsr_ray.serving.errors import Refused
from mmsr_ray.serving.logs import log_beside_serve
from mmsr_ray.weights.publisher import buckets
from mmsr_ray.weights.store import publish, start_store, store_name
from mmsr_ray.weights.transfer import checkpoint_files

logger = logging.getLogger(__name__)
BUCKET_BYTES = 256 << 20
STORE_SECONDS = 60.0
RESPELLED = {"model.language_model.": "model.", "model.visual.": "visual."}
Shapes = dict[str, tuple[tuple[int, ...], str]]


def serving_store(config: Config) -> str:
    """Name of a served model's weight store: not that of a training run of the same name."""
    return store_name(f"serving-{config.run.name}-{config.serving.model_name}")


class Weights:
    def __init__(self, settings: dict[str, Any]) -> None:
        log_beside_serve()
        self._config = from_dict(settings)
        self._store = start_store(serving_store(self._config), self._config.run.namespace)
        self._canary = Canary(2 * self._config.rollout.sync_seconds)
        self._paths: dict[int, str] = {}
        self._published = 0
        self._refs: dict[int, list[ray.ObjectRef]] = {}  # of the versions that engines may still pull
        self._one_at_a_time = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        watched = self._config.serving.weights_watch
        self._seen = _mark(Path(watched)) if watched == self._config.model.path else ()  # before any engine loads it

    async def wanted(self, engine: str, version: int, path: str) -> tuple[int, str]:
        """The version that an engine should serve, and the folder it comes from. It reports what it serves now."""
        if version > self._published:  # from before this process was restarted
            async with self._one_at_a_time:
                if version > self._published:
                    await self._publish(version, path)
                    self._canary.proven = self._canary.target = version
        if self._watching is None and self._config.serving.weights_watch:
            self._watching = asyncio.create_task(self._watch(Path(self._config.serving.weights_watch)))
        before = self._canary.proven
        wanted = self._canary.wanted(engine, version)
        if self._canary.proven != before:
            logger.info("weight version %d: engine %s serves it, so all will", self._canary.proven, engine)
        return wanted, self._paths.get(wanted, "")

    async def gone(self, engine: str) -> None:
        self._canary.forget(engine)

    async def bring_in(self, path: str) -> int:
        """Publish a model folder; the version that will be served. Raises Refused, also where the folder is replaced meanwhile.

        Whoever asked may leave: a large model takes minutes to read, longer than a proxy waits, and what has begun is brought to its end.
        """
        return await asyncio.shield(self._bring_in(path))

    async def _bring_in(self, path: str) -> int:
        async with self._one_at_a_time:
            if self._canary.busy:
                raise Refused("weights_busy", f"weight version {self._canary.target} is still being brought in", retry_after=5)
            await asyncio.to_thread(fits, self._config.model.path, path)
            version = self._published + 1
            await self._publish(version, path)
            self._canary.bring_in(version)
        logger.info("weight version %d from %s: one engine first", version, path)
        return version

    async def _publish(self, version: int, path: str) -> None:
        self._refs = {kept: held for kept, held in self._refs.items() if kept == self._canary.proven}
        refs: list[ray.ObjectRef] = []
        await asyncio.to_thread(publish, self._store, version, self._put(path, refs), STORE_SECONDS)
        self._published, self._paths[version] = version, path
        self._refs[version] = refs

    @staticmethod
    def _put(path: str, kept: list[ray.ObjectRef]) -> Iterator[ray.ObjectRef]:
        """One bucket after the other: before the first the store lets go of a version, so that no more than two lie in memory."""
        for bucket in buckets(tensors(path), None, BUCKET_BYTES):
            kept.append(ray.put(bucket))
            yield kept[-1]

    async def state(self) -> dict[str, Any]:
        """{"proven", "target", "served": {engine: version}}."""
        canary = self._canary
        return {"proven": canary.proven, "target": canary.target, "served": dict(canary.served)}

    async def _watch(self, folder: Path) -> None:
        """Bring in what appears in `folder`, once it has stayed the same for one look."""
        served = last = self._seen
        while True:
            await asyncio.sleep(self._config.serving.watch_seconds)
            now = await asyncio.to_thread(_mark, folder)
            if now and now == last and now != served:
                try:
                    await self.bring_in(str(folder))
                    served = now
                except Refused as refused:
                    logger.warning("%s is not served: %s", folder, refused.message)
                    served = now if refused.code != "weights_busy" else served
                except (RayError, OSError, SafetensorError) as error:  # the folder changed while it was read, or the store is away
                    logger.warning("%s is not served yet: %s", folder, error)
            last = now


def fits(served: str, offered: str) -> None:
    """Raises Refused where `offered` is no folder with weights of the same model as `served`."""
    try:
        found = Path(offered).is_dir()
    except OSError:  # a name that is too long
        found = False
    if not found:
        raise Refused("bad_request", "path is no folder that this service can read")
    try:
        ours, theirs = shapes(served), shapes(offered)
    except (OSError, ValueError, KeyError, SafetensorError):
        raise Refused("bad_request", "path holds no readable safetensors") from None
    if differing := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        raise Refused("bad_request", f"path holds another model: {len(differing)} weights differ in name, shape or dtype ({differing[0]})")


def shapes(path: str) -> Shapes:
    found: Shapes = {}
    for name, file in checkpoint_files(path, None).items():
        with safe_open(os.fspath(file), framework="pt") as weights:
            part = weights.get_slice(name)
            found[_as_released(name)] = (tuple(part.get_shape()), str(part.get_dtype()))
    return found


def _as_released(name: str) -> str:
    """A weight's name as Qwen's own files spell it. Models that a run wrote have transformers' newer spelling; vLLM reads both."""
    return next((old + name.removeprefix(new) for new, old in RESPELLED.items() if name.startswith(new)), name)


def tensors(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Of a model folder, one at a time. Raises Refused at the end where the folder was replaced meanwhile: they are of two models."""
    before = _mark(Path(path))
    for name, file in checkpoint_files(path, None).items():
        with safe_open(os.fspath(file), framework="pt") as weights:
            yield name, weights.get_tensor(name)
    if _mark(Path(path)) != before:  # large ones take minutes to read
        raise Refused("bad_request", "path was replaced while it was read: bring it in again")


def _mark(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Changes with the weights' files; () where there are none."""
    try:
        files = sorted(folder.glob("*.safetensors"))
        looks = [(file.name, file.stat()) for file in files]
        return tuple((name, look.st_ino, look.st_mtime_ns, look.st_size) for name, look in looks)
    except OSError:  # it is being replaced
        return ()
