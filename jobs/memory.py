"""Whether a run's memory fits, asked before anything of it starts (`mmsr_ray/learner/memory.py` counts)."""

from __future__ import annotations

import logging
from dataclasses import replace

import ray
import torch
from ray.exceptions import GetTimeoutError

from mmsr_ray.config import Config
from mmsr_ray.head import living_nodes
from mmsr_ray.learner.memory import check, machine_of, summary
from mmsr_ray.learner.meter import HostMeter
from mmsr_ray.learner.phases import GIB
from mmsr_ray.learner.settings import on_cuda

log = logging.getLogger(__name__)

CARD_SECONDS = 120.0  # to ask a card for its size; a cluster that has yet to grow has none


def check_memory(config: Config) -> None:
    """What config.machine leaves open is looked up: a card, and the memory of a lone node.

    Raises ConfigError where the plan does not fit, and HeadAway.
    """
    machine = machine_of(config)
    if not machine.host_gib and len(living_nodes()) == 1:
        machine = replace(machine, host_gib=HostMeter("").now().total / GIB)
    if on_cuda(config.learner) and not machine.card_gib:
        machine = replace(machine, card_gib=_card_gib())
        if not machine.card_gib:
            log.warning("no card can be seen yet, so their memory was not checked: machine.card_gib names it")
    log.info("memory in GiB: %s", summary(check(config, machine)))


def _card_gib() -> float:
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
