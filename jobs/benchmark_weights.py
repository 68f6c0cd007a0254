"""The suite `weights`: what a weight update costs, on real engines and by model size.

By size a publisher and a receiver, each a process of its own, carry Qwen2.5-VL-shaped bf16 weights through the real store
(`weights.measure`). A share of memory-copy speed is always: the bytes of one version, once, over the seconds, against the bytes per
second of torch's copy, with one thread or with all cores, whichever is faster, in the same run. Two copies are the least there can be (into the object store, out of
it), so one after the other cannot exceed a half.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import statistics
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, OutOfMemoryError
from safetensors.torch import load_file, save_file

from jobs.atlas_stage import world
from jobs.benchmark_rows import row
from jobs.benchmark_transports import DESCRIPTIONS, measured
from jobs.connect import connect
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.parts import start_runners
from mmsr_ray.config import Config
from mmsr_ray.head import stored_bytes
from mmsr_ray.learner.shapes import SHAPES, shape_config
from mmsr_ray.rollout.measure import update_seconds
from mmsr_ray.tools.actor import start_tools
from mmsr_ray.weights.measure import copy_rate, version_bytes, way, weights_of_shape
from mmsr_ray.weights.publisher import buckets
from mmsr_ray.weights.store import start_store

log = logging.getLogger("benchmark")

UPDATES = 100  # of the tiny policy
ROUNDS = {"0.5b": 5, "3b": 2}
ENGINE = CAST = "0.5b"  # the shape of the real engine, and of float32 weights that are cast on their way
GIB = 2**30
SPARE_GIB = 5.0  # of free memory beside one version: two processes, and what the object store touches when it is not filled in order
ENGINE_GIB = 7.0  # of free memory for a real engine of ENGINE's shape


def weights(config: Config) -> list[dict[str, Any]]:
    """All rows; those that do not fit into memory are left out, with a sentence."""
    rows = [found for size in ROUNDS for found in _by_size(size, config.learner.bucket_bytes)]
    connect(config)
    with world(config) as here:
        running = start_tools(here)
        rows += _tiny(here) + _engine(here)
        del running
    return rows


def _row(name: str, value: float, unit: str, reference: str, reference_value: float) -> dict[str, Any]:
    return row(name, value, unit, reference, reference_value, "weights")


# ---------------------------------------------------------------------------------------------------- by size


def _by_size(size: str, bucket_bytes: int) -> list[dict[str, Any]]:
    version_gib = version_bytes(size) / GIB
    if (free := psutil.virtual_memory().available / GIB) < version_gib + SPARE_GIB:
        log.warning("%s: left out, it needs %.1f GiB of free memory and there are %.1f", size, version_gib + SPARE_GIB, free)
        return []
    capacity = int((1.3 * version_gib + 0.2) * GIB)  # Ray begins to spill to disk at four fifths
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, object_store_memory=capacity, logging_level=logging.ERROR, log_to_driver=False
    )
    try:
        best = copy_rate()
        straight = way(size, _fresh_store, bucket_bytes=bucket_bytes, rounds=ROUNDS[size])
        cast = [size] * (size == CAST)
        converted = [way(s, _fresh_store, bucket_bytes=bucket_bytes, rounds=ROUNDS[s], source=torch.float32, lasting=False) for s in cast]
        best = max(best, copy_rate())
    except (ActorDiedError, OutOfMemoryError) as error:
        log.warning("%s: left out, a process died, most likely because others took the memory meanwhile: %s", size, str(error)[:200])
        return []
    finally:
        ray.shutdown()
    label = f"Qwen2.5-VL-{size.upper()} shape, {straight.bytes / 1e9:.2f} GB in bf16"
    copy = "one copy of the same bytes by torch"

    def rate(what: str, seconds: float) -> dict[str, Any]:
        return _row(f"{what}; {label}", straight.bytes / seconds / 1e9, "GB/s", copy, best / 1e9)

    return [
        rate("publish: learner's bf16 tensors to object store", straight.publish),
        rate("load: object store to a receiver's own tensors in another process", straight.load),
        rate("end to end, first publish and then load", straight.together),
        rate("end to end, loading along with the publish, as on-policy runs do", straight.along),
        *[rate("publish: float32 tensors that are cast to bf16", extra.publish) for extra in converted],
        *[rate("end to end, loading along, float32 tensors that are cast to bf16", extra.along) for extra in converted],
        _row(f"seconds end to end, loading along; {label}", straight.along, "s", copy, straight.bytes / best),
    ]


def _fresh_store() -> ActorHandle:
    return start_store(f"weights-{uuid.uuid4().hex[:8]}", "benchmark")


# ---------------------------------------------------------------------------------------------------- on engines


class Publisher:
    """Puts the same tensors into a store again and again."""

    def __init__(self, config: Config, tensors: dict[str, torch.Tensor], name: str) -> None:
        self.store: Any = start_store(name, config.run.namespace)
        self._tensors, self._bucket_bytes = tensors, config.learner.bucket_bytes
        self._version = -1
        self._owned: list[list[ray.ObjectRef]] = []

    def publish(self) -> int:
        self._version += 1
        made = buckets(self._tensors.items(), None, self._bucket_bytes, lasting=True, checksums=self._version == 0)
        refs = [ray.put(bucket) for bucket in made]
        ray.get(self.store.publish.remote(self._version, refs), timeout=60)
        self._owned = [*self._owned[-1:], refs]
        return self._version


def _tiny(config: Config) -> list[dict[str, Any]]:
    """Seconds of an update of the tiny policy, pause included, and what a hundred of them leave in the object store."""
    name = f"weights-benchmark-{config.run.name}"
    model = load_file(Path(config.model.path) / "model.safetensors")
    publisher = Publisher(config, model, name)
    publisher.publish()
    runners = start_runners(config, GRPOConfig.from_config(config), store=name)
    try:
        runners.wait_until_up()
        actor = runners.actor(runners.ids()[0])
        update_seconds(actor, publisher.publish, 3)
        before = stored_bytes()
        seconds = [parts["total"] for parts in update_seconds(actor, publisher.publish, UPDATES)]
        after = stored_bytes()
    finally:
        runners.stop()
    size = sum(t.numel() * t.element_size() for t in model.values())
    return [
        _row("seconds of a weight update of the tiny policy, pause included, median of 100", statistics.median(seconds), "s",
             "the goal", 0.15),
        _row("seconds of the slowest of 100 weight updates", max(seconds), "s", "the goal", 0.15),
        _row("object store after 100 updates", after / 2**20, "MiB", f"before them; one version is {size / 2**20:.1f} MiB",
             before / 2**20),
    ]  # fmt: skip


def _engine(config: Config) -> list[dict[str, Any]]:
    """A real vLLM engine of a larger shape, by transport: seconds in which nothing is generated, publishing not included."""
    with larger(config, Path(config.model.path)) as large:
        if large is None:
            return []
        found = {transport: measured(large, transport) for transport in DESCRIPTIONS}
    size = version_bytes(ENGINE)
    copy = size / copy_rate()
    label = f"a vLLM CPU engine of the {ENGINE.upper()} shape, {size / 1e9:.2f} GB in bf16"
    return [
        _row(
            f"seconds that {label} stands still in an update {DESCRIPTIONS[transport]}",
            statistics.median(pause for _, pause in seconds),
            "s",
            "one copy of the same bytes by torch",
            copy,
        )
        for transport, seconds in found.items()
    ]


@contextmanager
def larger(config: Config, base: Path) -> Iterator[Config | None]:
    """Inside, the config of a model of ENGINE's shape with the tokenizer of `base`, on all cores; None, with a sentence, where memory is short."""
    if (free := psutil.virtual_memory().available / GIB) < ENGINE_GIB:
        log.warning(
            "a model of the %s shape: left out, it needs %.1f GiB of free memory and there are %.1f", ENGINE.upper(), ENGINE_GIB, free
        )
        yield None
        return
    with tempfile.TemporaryDirectory(dir=config.run.dir) as folder:
        model = replace(config.model, path=str(model_folder(Path(folder), base, ENGINE)), dtype="bfloat16")
        yield replace(config, model=model, rollout=replace(config.rollout, threads=os.cpu_count() or 1))


def model_folder(folder: Path, base: Path, size: str) -> Path:
    """A model of a size's shape with the tokenizer of `base`; its weights are random, and those that an engine starts from."""
    for file in base.iterdir():
        if file.suffix in (".json", ".jinja", ".txt"):
            shutil.copy2(file, folder / file.name)
    own = json.loads((base / "config.json").read_text())
    made = shape_config(SHAPES[size]).to_dict()
    made |= {key: value for key, value in own.items() if key.endswith("_token_id") or key == "architectures"}
    made["text_config"] |= {key: own["text_config"][key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "config.json").write_text(json.dumps(made))
    save_file({name: t.clone() for name, t in weights_of_shape(size).items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
