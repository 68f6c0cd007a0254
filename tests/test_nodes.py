"""Which nodes a role may lie on: what it asks for, what no name can be, and that moving is no other run."""

from __future__ import annotations

import pytest

from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.evaluation.summary import config_hash
from mmsr_ray.nodes import bundle_of, complaint, resources


def test_a_role_asks_for_a_share_that_never_runs_out() -> None:
    assert resources("") == {}
    assert resources("runner")["runner"] * 500 < 1


def test_a_bundle_names_only_what_is_asked_for() -> None:
    assert bundle_of(2, 0, "") == {"CPU": 2}
    assert bundle_of(0, 0, "") == {}
    assert bundle_of(0, 0.5, "runner") == {"GPU": 0.5} | resources("runner")


@pytest.mark.parametrize("key", ["tools.node", "rollout.node", "learner.node", "grpo.node"])
def test_a_name_that_is_no_custom_resource_is_refused_by_key(key: str) -> None:
    needed = ["model.path=m", "data.train=a", "data.test=b"]
    load(None, [*needed, f"{key}=gpu-pool.a"])
    for wrong in ("GPU", "two words", "node:10.0.0.1", "a|b"):
        with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
            load(None, [*needed, f"{key}={wrong}"])
    assert not complaint(key, "")


def test_the_same_run_on_other_nodes_is_the_same_run() -> None:
    elsewhere = Config()
    elsewhere.rollout.node = elsewhere.tools.node = "pool"
    assert config_hash(elsewhere) == config_hash(Config())
