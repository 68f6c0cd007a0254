"""Whether a run's memory fits, asked before anything of it starts (`mmsr_ray/learner/memory.py` counts)."""

from __future__ import annotations

import logging
from dataclasses import replace

import ray
import torch

from mmsr_ray.config import Config
from mmsr_ray.learner.memory import GIB, check, machine_of, summary
from mmsr_ray.learner.meter import HostMeter

log = logging.getLogger(__name__)


def check_memory(config: Config) -> None:
    """Raises ConfigError where the plan does not fit. What config.machine leaves open is looked up where this machine is the cluster."""
    machine = machine_of(config)
    if len(ray.nodes()) == 1:
        if not machine.host_gib:
            machine = replace(machine, host_gib=HostMeter("").now().total / GIB)
        if not machine.card_gib and torch.cuda.is_available():
            machine = replace(machine, card_gib=torch.cuda.get_device_properties(0).total_memory / GIB)
    log.info("memory in GiB: %s", summary(check(config, machine)))
