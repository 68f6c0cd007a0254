"""What each overlay's config asks of Ray against what its worker groups offer, as Ray's own autoscaler reads them."""

from __future__ import annotations

import copy
import json
from collections import Counter

import pytest

from jobs.check_cluster import asked, cluster_spec, complaint, worker_groups
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.parts import bundles
from mmsr_ray.algorithms.placement import copies, fit
from mmsr_ray.config import Config
from mmsr_ray.nodes import resources
from tests.cluster.manifests import OVERLAYS, config_of, nodes, ray_document, render

TRAINING = [overlay for overlay in OVERLAYS if overlay.endswith("train")]
DRIVER = {"CPU": 1.0, "tools": 0.001}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_fits_when_the_fleet_is_whole(overlay: str) -> None:
    assert complaint(list(render(overlay))) == ""


@pytest.mark.parametrize("overlay", TRAINING)
def test_driver_tools_algorithm_and_ranks_do_not_wait_for_the_autoscaler(overlay: str) -> None:
    config, document = config_of(overlay), ray_document(overlay)
    assert {"CPU": document["spec"]["entrypointNumCpus"]} | json.loads(document["spec"]["entrypointResources"]) == DRIVER
    algorithm, *rest = bundles(config).bundles
    ranks = rest if config.learner.colocated else rest[config.rollout.num_runners :]
    tools = [resources(config.tools.node)] * (config.tools.actors + 1)
    room = fit([DRIVER, *tools, algorithm, *ranks], nodes(document, largest=False))
    assert room.enough, str(room)


@pytest.mark.parametrize("overlay", TRAINING)
def test_no_group_of_runners_is_larger_than_its_runners(overlay: str) -> None:
    """A node that nobody could fill costs money."""
    config = config_of(overlay)
    runner = {"CPU": config.rollout.cpus_per_runner, "GPU": config.rollout.gpus_per_runner} | resources(config.rollout.node)
    for group in worker_groups(ray_document(overlay)):
        if group.name == "runners":
            each = copies({name: amount for name, amount in runner.items() if amount}, [group.resources])
            assert (group.most - 1) * each < max(config.rollout.max_runners, config.rollout.num_runners) <= group.most * each


def test_what_can_never_fit_is_told_before_it_is_applied() -> None:
    documents = copy.deepcopy(list(render("paper/train")))
    (job,) = (document for document in documents if document["kind"] == "RayJob")
    group = next(group for group in cluster_spec(job)["workerGroupSpecs"] if group["groupName"] == "runners")
    group["maxReplicas"] = 1
    assert "does not fit on the groups at their largest" in complaint(documents)
    group["minReplicas"] = 2
    assert complaint(documents).startswith("worker group runners can never scale")
    group.update(minReplicas=0, maxReplicas=4, resources={})
    assert "rollout.node ask for on one node" in complaint(documents)


def test_the_paper_has_32_gpus_and_its_batch() -> None:
    config, document = config_of("paper/train"), ray_document("paper/train")
    gpus = Counter[str]()
    for bundle in bundles(config).bundles:
        gpus.update({"GPU": int(bundle.get("GPU", 0))})
    assert gpus["GPU"] == 32
    assert (config.grpo.groups_per_step, config.grpo.group_size, config.grpo.minibatches, config.grpo.steps) == (512, 8, 4, 50)
    assert all(group.resources["GPU"] == 8 for group in worker_groups(document) if group.name != "tools")


def test_roles_ask_for_their_nodes() -> None:
    """The settings reach the bundles and the runners outside them; without them nothing is asked."""
    config = config_of("paper/train")
    algorithm, first, *_, last = bundles(config).bundles
    assert algorithm == {"CPU": 0.1, "learner": 0.001}
    assert first == {"CPU": 8.0, "GPU": 1.0, "runner": 0.001} and last == {"CPU": 8.0, "GPU": 1.0, "learner": 0.001}
    assert GRPOConfig.from_config(config).custom_resources_per_env_runner == {"runner": 0.001}
    assert bundles(config_of("one-gpu/train")).bundles[1:] == [{"CPU": 6.0, "GPU": 1.0, "learner": 0.002}]
    assert bundles(Config()).bundles[1] == {"CPU": 1.0}


@pytest.mark.parametrize("overlay", [overlay for overlay in OVERLAYS if overlay.endswith("serve")])
def test_engines_of_the_service_find_their_most(overlay: str) -> None:
    config, document = config_of(overlay, "serve.yaml"), ray_document(overlay)
    least = asked(document, config)
    assert len(least) == config.serving.engine.min_replicas + config.tools.actors + 1
    assert copies({"CPU": 4.0, "GPU": 1.0}, nodes(document, largest=True)) >= config.serving.engine.max_replicas
