"""What is submitted in these tests: `python -m tests.cluster.train CONFIG ADDRESS` trains on Atlas, with a policy that always searches by image once.

ADDRESS is that of the machine it runs on: Ray looks for its node among the processes, and here all machines see each other's.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import ray

from jobs.atlas_stage import world
from jobs.connect import connect
from jobs.reinforce import reinforce
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.config import load
from mmsr_ray.tools.actor import start_tools
from tests.algorithms.searcher import Searcher


def main(file: str, address: str) -> None:
    ray.init = partial(ray.init, _node_ip_address=address)
    plain = GRPOConfig.from_config
    GRPOConfig.from_config = lambda config: plain(config).env_runners(env_runner_cls=Searcher)  # type: ignore[method-assign]
    config = load(file)
    connect(config)
    with world(config) as here:
        tools = start_tools(here)
        reinforce(here, here.model.path, Path(here.run.dir, here.run.name))
        del tools


if __name__ == "__main__":
    main(*sys.argv[1:])
