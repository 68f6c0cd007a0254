"""What the processes of a run hold that a training step has to give back: our own objects, tensors, references, open files, threads."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import psutil
import ray
import torch
from ray._private.internal_api import node_stats

from mmsr_ray.agent.pieces import SizedPicture
from mmsr_ray.algorithms.grpo import GRPO
from mmsr_ray.types import Picture

FILES, THREADS, REFERENCES = "open files in all processes", "threads in all processes", "references in all processes"
NOISE = {FILES: 20, THREADS: 20, REFERENCES: 3}  # Ray's own pools and calls under way
CACHED = (Picture, SizedPicture)  # in runners: `agent.pictures` keeps as many bytes of them as it says


def objects(part: Any = None) -> Counter[str]:
    """Of this process, by type: instances of this package's classes but for cached pictures, and tensors but for cached patches."""
    gc.collect()
    types = Counter(type(found) for found in gc.get_objects())
    ours = {kind: n for kind, n in types.items() if str(kind.__module__).startswith("mmsr_ray.") and kind not in CACHED}
    counts = Counter({f"{kind.__module__}.{kind.__qualname__}": n for kind, n in ours.items()})
    cached = len(part._cache._entries) if hasattr(part, "_cache") else 0
    counts["tensors"] = types[torch.Tensor] - cached
    return counts


def held(algorithm: GRPO) -> Counter[str]:
    """By process and kind."""
    parts = {"store": algorithm.parts.store, "feeder": algorithm.parts.feed.actor}
    parts |= {f"rank {i}": rank for i, rank in enumerate(algorithm.parts.learners.ranks)}
    parts |= {f"runner {i}": algorithm.parts.runners.actor(i) for i in algorithm.parts.runners.ids()}
    found = {"driver": objects(), **{name: ray.get(actor.__ray_call__.remote(objects), timeout=60) for name, actor in parts.items()}}
    counts = Counter({f"{name}: {kind}": n for name, kinds in found.items() for kind, n in kinds.items()})
    (node,) = ray.nodes()
    for worker in node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False).core_workers_stats:
        counts[REFERENCES] += worker.num_object_refs_in_scope
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        try:
            counts[FILES] += process.num_fds()
            counts[THREADS] += process.num_threads()
        except psutil.NoSuchProcess:
            continue
    return counts
