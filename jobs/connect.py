"""The Ray that a job runs on."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray

from mmsr_ray.config import Config

LOGICAL_CPUS = 8  # of a Ray of our own: what actors may ask for, idle ones included, not what the machine has


def connect(config: Config) -> None:
    """Join the cluster of RAY_ADDRESS (set in every submitted job); without one, start a Ray that ends with this process."""
    # The job's log is for people: stages, steps, rows, errors. What actors say is in their own logs, in Ray's dashboard.
    options: dict[str, Any] = {"namespace": config.run.namespace, "logging_level": logging.ERROR, "log_to_driver": False}
    if "RAY_ADDRESS" not in os.environ:
        options |= {"address": "local", "num_cpus": max(LOGICAL_CPUS, os.cpu_count() or 1), "include_dashboard": False}
    ray.init(**options)
