"""Will the worker groups of a rendered overlay ever hold the run that it carries? Needs neither a cluster nor Ray running.

    kubectl kustomize cluster/overlays/paper/train | python jobs/check_cluster.py

Reads the RayCluster, RayJob or RayService and the config of the ConfigMap mmsr-config (its `base`, under /app in the image, is read
from this checkout). Exit status: 0 it fits; 2 it never will, and one sentence says why.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the jobs package, when this file is run as a script

from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from mmsr_ray.algorithms.parts import bundles
from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.nodes import bundle_of, resources
from mmsr_ray.preflight.fleet import WorkerGroup, never

Document = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
IN_THE_IMAGE = "/app/"  # where the Dockerfile puts this checkout
SPEC_OF = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
TO_MEND = 2

logger = logging.getLogger("check_cluster")


def cluster_spec(document: Document) -> Document:
    """Of a RayCluster, or of the one in a RayJob or RayService."""
    key = SPEC_OF[document["kind"]]
    return document["spec"][key] if key else document["spec"]


def worker_groups(document: Document) -> list[WorkerGroup]:
    """As Ray's own autoscaler reads them."""
    spec = cluster_spec(document)
    made = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "any", "namespace": "any"}, "spec": spec})["available_node_types"]
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    return [WorkerGroup(name, made[name]["resources"], made[name]["min_workers"], made[name]["max_workers"]) for name in names]


def settings(text: str) -> Config:
    """The config of a ConfigMap. Raises ConfigError."""
    values = yaml.safe_load(text)
    if "base" in values:
        values["base"] = values["base"].replace(IN_THE_IMAGE, f"{ROOT}/", 1)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        return load(file.name)


def asked(document: Document, config: Config) -> list[dict[str, float]]:
    """All that a run reserves at the same time, elastic runners included; for a service, its engines at the least."""
    tools = [resources(config.tools.node)] * (config.tools.actors + 1) if config.tools.node else []
    runner = bundle_of(config.rollout.cpus_per_runner, config.rollout.gpus_per_runner, config.rollout.node)
    if document["kind"] == "RayService":
        return [*tools, *[runner] * (config.serving.engine.min_replicas * (1 + len(config.serving.models)))]
    elastic = [runner] * max(config.rollout.max_runners - config.rollout.num_runners, 0)
    driver = {"CPU": float(document["spec"].get("entrypointNumCpus", 1))}
    return [driver, *tools, *bundles(config).bundles, *elastic]


def complaint(documents: list[Document]) -> str:
    """Raises ConfigError."""
    (document,) = (found for found in documents if found["apiVersion"] == "ray.io/v1")
    (data,) = (found["data"] for found in documents if found["kind"] == "ConfigMap")
    config = settings(data["serve.yaml" if document["kind"] == "RayService" else "config.yaml"])
    return never(asked(document, config), worker_groups(document), config)


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        said = complaint([document for document in yaml.safe_load_all(sys.stdin) if document])
    except ConfigError as error:
        said = str(error)
    if said:
        logger.error("%s", said)
        return TO_MEND
    logger.info("it fits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
