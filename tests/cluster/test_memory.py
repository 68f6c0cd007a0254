"""What the overlays' configs need of cards and pods, by the memory planner."""

from __future__ import annotations

import pytest

from jobs.check_cluster import ROOT, cluster_spec, settings
from mmsr_ray.learner.memory import complaints, footprint_of, machine_of, summary
from mmsr_ray.learner.phases import plan
from tests.cluster.manifests import ray_document

WITH_CARDS = ["one-gpu", "eight-gpu", "paper"]


@pytest.mark.parametrize("size", WITH_CARDS)
def test_the_config_of_an_overlay_fits_the_cards_it_names(size: str) -> None:
    text = (ROOT / "cluster" / "overlays" / size / "cluster" / "config.yaml").read_text()
    config = settings(text)
    made = plan(config, footprint_of(config.model.path), machine_of(config))
    assert config.machine.card_gib > 0 and config.machine.host_gib > 0
    assert complaints(made) == []
    if not config.learner.colocated:  # the others are recipes of jobs/configs, which quote it
        assert f"#   GiB: {summary(made)}\n" in text


@pytest.mark.parametrize("size", WITH_CARDS)
def test_the_machine_that_a_config_names_is_the_learners_pod(size: str) -> None:
    machine = settings((ROOT / "cluster" / "overlays" / size / "cluster" / "config.yaml").read_text()).machine
    spec = cluster_spec(ray_document(f"{size}/train"))
    (learners,) = (group for group in spec["workerGroupSpecs"] if group["groupName"] == "learners")
    limits = learners["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["memory"] == f"{machine.host_gib:g}Gi"
    assert int(limits["nvidia.com/gpu"]) == machine.cards
