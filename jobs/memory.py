"""Whether a run's memory fits, asked before anything of it starts (`mmsr_ray/learner/memory.py` counts)."""

from __future__ import annotations

import logging
from dataclasses import replace

import ray
import torch
from ray.exceptions import GetTimeoutError

from mmsr_ray.config import Config
from mmsr_ray.head import STORE, living_nodes
from mmsr_ray.learner.memory import check, machine_of, summary
from mmsr_ray.learner.meter import HostMeter
from mmsr_ray.learner.phases import GIB, Plan, version_bytes
from mmsr_ray.learner.settings import on_cuda

log = logging.getLogger(__name__)

FULL = 0.8  # of its object store, above which Ray writes what lies there to disk
CARD_SECONDS = 120.0  # to ask a card for its size; a cluster that has yet to grow has none


def check_memory(config: Config) -> None:
    """What config.machine leaves open is looked up: a card, and the memory of a lone node, which counts also where a larger one is named.

    A lone node without the cards that are asked for is the head of a cluster that has yet to grow.
    Raises ConfigError where the plan does not fit, and HeadAway.
    """
    machine = machine_of(config)
    nodes = living_nodes()
    if len(nodes) == 1 and (nodes[0].resources.get("GPU") or not on_cuda(config.learner)):
        here = HostMeter("").now().total / GIB
        machine = replace(machine, host_gib=min(here, machine.host_gib or here))
    if on_cuda(config.learner) and not machine.card_gib:
        machine = replace(machine, card_gib=card_gib())
        if not machine.card_gib:
            log.warning("no card can be seen yet, so their memory was not checked: machine.card_gib names it")
    made = check(config, machine)
    log.info("memory in GiB: %s", summary(made))
    if said := _small_store(made):
        log.warning("%s", said)


def _small_store(made: Plan) -> str:
    """Where two versions of the weights do not fit into an object store that they pass through; "" where they do, or pass elsewhere."""
    learner = made.config.learner
    if learner.transport != "object_store" or learner.lora.sync == "adapter":
        return ""
    wanted = 2 * version_bytes(made.config, made.model) / FULL
    stores = {node.address: node.resources.get(STORE, 0.0) for node in living_nodes() if made.card == () or node.resources.get("GPU")}
    address = min(stores, key=lambda name: stores[name], default="")
    if not address or stores[address] >= wanted:
        return ""
    return (
        f"the object store of node {address} has {stores[address] / GIB:.1f} GiB and two versions of the weights want {wanted / GIB:.1f}: the rest "
        "goes through its disk at each update; give it more (ray start --object-store-memory; a container --shm-size; a machine memory)"
    )


def card_gib() -> float:
    """Of the smallest card of one node; 0 where there is none."""
    if not any(node.resources.get("GPU") for node in living_nodes()):
        return 0.0
    try:
        return ray.get(ray.remote(num_cpus=0, num_gpus=0.01, max_calls=1)(_smallest).remote(), timeout=CARD_SECONDS)
    except GetTimeoutError:
        return 0.0


def _smallest() -> float:
    sizes = [torch.cuda.get_device_properties(i).total_memory / GIB for i in range(torch.cuda.device_count())]
    return min(sizes, default=0.0)
