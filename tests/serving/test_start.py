"""A service whose parts find no room says so, within its deadline."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray import serve

from mmsr_ray.config import load
from mmsr_ray.serving.app import start
from mmsr_ray.serving.errors import NotReady
from mmsr_ray.serving.keys import Keys


@pytest.mark.heavy
def test_a_start_that_finds_no_room_ends_and_names_what_is_missing(tiny_model: Path, tmp_path: Path) -> None:
    settings = [f"model.path={tiny_model}", "data.train=none", "data.test=none", f"run.dir={tmp_path}", "serving.port=0"]
    config = load(None, [*settings, "rollout.cpus_per_runner=64", "serving.ready_seconds=8", "serving.shutdown_seconds=1"])
    ray.init(address="local", num_cpus=2, include_dashboard=False, namespace=config.run.namespace, log_to_driver=False)
    try:
        with pytest.raises(NotReady, match=r"ready_seconds=8.*Engine"):
            start(config, Keys.read(config.serving, {}))
    finally:
        serve.shutdown()
        ray.shutdown()
