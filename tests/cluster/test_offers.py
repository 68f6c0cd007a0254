"""What each overlay's config asks of Ray against what its worker groups offer, as Ray's own autoscaler reads them."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.parts import bundles
from mmsr_ray.algorithms.placement import copies, fit
from mmsr_ray.config import Config
from mmsr_ray.nodes import resources
from tests.cluster.manifests import OVERLAYS, node_types, nodes, ray_document, settings

TRAINING = [overlay for overlay in OVERLAYS if overlay.endswith("train")]
DRIVER = {"CPU": 1.0, "tools": 0.001}


def tools(config: Config) -> list[dict[str, float]]:
    """The quota actor and the tool actors."""
    return [resources(config.tools.node)] * (config.tools.actors + 1)


def runner(config: Config) -> dict[str, float]:
    asked = {"CPU": config.rollout.cpus_per_runner, "GPU": config.rollout.gpus_per_runner} | resources(config.rollout.node)
    return {name: amount for name, amount in asked.items() if amount}


@pytest.mark.parametrize("overlay", TRAINING)
def test_everything_fits_when_the_fleet_is_whole_and_a_driver_less_does_not_hide_it(overlay: str) -> None:
    config, document = settings(overlay), ray_document(overlay)
    driver = {"CPU": document["spec"]["entrypointNumCpus"]} | json.loads(document["spec"]["entrypointResources"])
    assert driver == DRIVER
    elastic = [runner(config)] * max(config.rollout.max_runners - config.rollout.num_runners, 0)
    room = fit([driver, *tools(config), *bundles(config).bundles, *elastic], nodes(document, "max_workers"))
    assert room.enough, str(room)


@pytest.mark.parametrize("overlay", TRAINING)
def test_what_must_be_there_at_the_start_does_not_wait_for_the_autoscaler_but_for_runners(overlay: str) -> None:
    """Driver, tools, Algorithm and ranks fit on the fixed groups alone."""
    config, document = settings(overlay), ray_document(overlay)
    fixed = bundles(config).bundles if config.learner.colocated else [
        {"CPU": config.grpo.driver_cpus} | resources(config.grpo.node),
        *bundles(config).bundles[1 + config.rollout.num_runners :],
    ]  # fmt: skip
    room = fit([DRIVER, *tools(config), *fixed], nodes(document, "min_workers"))
    assert room.enough, str(room)


@pytest.mark.parametrize("overlay", TRAINING)
def test_a_group_is_not_larger_than_what_may_run_there(overlay: str) -> None:
    """Nodes that nobody would ever fill cost money: the last node of the group of runners still gets one."""
    config, document = settings(overlay), ray_document(overlay)
    types = node_types(document)
    if "runners" in types:
        each = copies(runner(config), [types["runners"]["resources"]])
        wanted = max(config.rollout.max_runners, config.rollout.num_runners)
        assert (types["runners"]["max_workers"] - 1) * each < wanted <= types["runners"]["max_workers"] * each


def test_the_check_itself_sees_a_node_that_is_too_small() -> None:
    config, document = settings("paper/train"), ray_document("paper/train")
    offered = [{**node, "GPU": 1} if "runner" in node else node for node in nodes(document, "max_workers")]
    room = fit(bundles(config).bundles, offered)
    assert not room.enough and "missing" in str(room)


def test_the_paper_has_32_gpus_and_its_batch() -> None:
    config, document = settings("paper/train"), ray_document("paper/train")
    asked = Counter[str]()
    for bundle in bundles(config).bundles:
        asked.update({"GPU": int(bundle.get("GPU", 0))})
    assert asked["GPU"] == 32
    assert (config.grpo.groups_per_step, config.grpo.group_size, config.grpo.minibatches, config.grpo.steps) == (512, 8, 4, 50)
    assert all(kind["resources"]["GPU"] == 8 for name, kind in node_types(document).items() if name != "tools")


def test_roles_ask_for_their_nodes() -> None:
    """The settings reach the bundles and the runners outside them; without them nothing is asked."""
    config = settings("paper/train")
    algorithm, first, *_, last = bundles(config).bundles
    assert algorithm == {"CPU": 0.1, "learner": 0.001}
    assert first == {"CPU": 8.0, "GPU": 1.0, "runner": 0.001} and last == {"CPU": 8.0, "GPU": 1.0, "learner": 0.001}
    assert GRPOConfig.from_config(config).custom_resources_per_env_runner == {"runner": 0.001}
    one = settings("one-gpu/train")
    assert bundles(one).bundles[1:] == [{"CPU": 6.0, "GPU": 1.0, "learner": 0.002}]
    assert bundles(Config()).bundles[1] == {"CPU": 1.0}


@pytest.mark.parametrize("overlay", [overlay for overlay in OVERLAYS if overlay.endswith("serve")])
def test_engines_of_the_service_fit(overlay: str) -> None:
    config, document = settings(overlay, "serve.yaml"), ray_document(overlay)
    engine = {"CPU": config.rollout.cpus_per_runner, "GPU": config.rollout.gpus_per_runner}
    assert copies(engine, nodes(document, "max_workers")) >= config.serving.engine.max_replicas
    room = fit([engine] * config.serving.engine.min_replicas + tools(config), nodes(document, "max_workers"))
    assert room.enough, str(room)
