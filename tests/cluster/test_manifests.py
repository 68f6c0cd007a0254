"""Every overlay: valid for KubeRay and Kubernetes, within the operator's own rules, locked down, and without a secret's value."""

from __future__ import annotations

import ast
import copy
import importlib.metadata
import json
from typing import Any

import pytest
import yaml

from jobs.check_cluster import ROOT, cluster_spec, worker_groups
from tests.cluster.manifests import (
    OVERLAYS,
    complaints,
    config_of,
    groups,
    pod_templates,
    ray_document,
    render,
)

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def test_there_is_an_overlay_for_each_size() -> None:
    assert {overlay.split("/")[0] for overlay in OVERLAYS} == {"cpu-demo", "one-gpu", "eight-gpu", "paper"}
    assert {"paper/train", "one-gpu/serve", "cpu-demo/cluster"} <= set(OVERLAYS)


@every_overlay
def test_schemas_have_no_complaint(overlay: str) -> None:
    for document in render(overlay):
        assert not complaints(document), f"{document['kind']} {document['metadata']['name']}"


def test_unknown_fields_and_wrong_values_are_refused() -> None:
    document = copy.deepcopy(ray_document("paper/train"))
    document["spec"]["bakoffLimit"] = 3
    cluster_spec(document)["authOptions"]["mode"] = "tokn"
    groups(document)[0]["template"]["spec"]["containers"][0]["imagee"] = "x"
    said = "\n".join(complaints(document))
    assert "bakoffLimit" in said and "tokn" in said and "imagee" in said
    policy = copy.deepcopy(next(document for document in render("paper/train") if document["kind"] == "NetworkPolicy"))
    policy["spec"]["podSelektor"] = {}
    assert complaints(policy)


@every_overlay
def test_the_operators_own_rules(overlay: str) -> None:
    """What KubeRay's schema lets pass and its operator refuses (validation.go), or what held on a real API server."""
    document = ray_document(overlay)
    spec = cluster_spec(document)
    assert len(document["metadata"]["name"]) <= 47
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == importlib.metadata.version("ray"), "the image holds the release that the tests ran with"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    assert len(set(names)) == len(names)
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups(document):
        assert group["template"]["spec"]["restartPolicy"] == "Never", "autoscaler v2"
        for container in group["template"]["spec"]["containers"]:
            taken = {variable["name"] for variable in container.get("env", [])}
            # the operator sets these itself; with gcsFaultToleranceOptions it refuses the redis ones
            assert not taken & {"RAY_enable_autoscaler_v2", "RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"}
    if document["kind"] == "RayJob":
        job = document["spec"]
        assert job["submissionMode"] == "K8sJobMode" and job["entrypointNumCpus"] > 0
        assert "clusterSelector" not in job and "deletionStrategy" not in job, "not with backoffLimit, not with ttlSecondsAfterFinished"
        assert job["shutdownAfterJobFinishes"], "without it ttlSecondsAfterFinished is refused"
        assert job["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"
        asked = json.loads(job["entrypointResources"])
        assert all(any(name in group.resources for group in worker_groups(document)) for name in asked)


@every_overlay
def test_worker_groups_scale_as_their_roles_do(overlay: str) -> None:
    document = ray_document(overlay)
    found = {group.name: group for group in worker_groups(document)}
    assert found["tools"].least >= 1 and "GPU" not in found["tools"].resources, "the driver needs a node from the start"
    if "learners" in found:
        assert found["learners"].least == found["learners"].most
    if "runners" in found:
        assert found["runners"].least == 0 < found["runners"].most
    if overlay.endswith(("cluster", "train")):
        assert document["metadata"]["labels"]["ray.io/gang-scheduling-enabled"] == "true"
        budgets = {d["metadata"]["name"]: d["spec"] for d in render(overlay) if d["kind"] == "PodDisruptionBudget"}
        assert budgets["mmsr-learners"]["minAvailable"] == found["learners"].least


@every_overlay
def test_pods_are_locked_down(overlay: str) -> None:
    """Pod Security Standard "restricted", and a root file system that cannot be written."""
    for template in pod_templates(overlay):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec.get("hostNetwork") and not any("hostPath" in volume for volume in spec.get("volumes", []))
        if template["metadata"]["labels"].get("mmsr/role") != "head":  # its autoscaler asks the API server for pods
            assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            locked = container["securityContext"]
            assert (
                locked["readOnlyRootFilesystem"] and not locked["allowPrivilegeEscalation"] and locked["capabilities"] == {"drop": ["ALL"]}
            )
            assert container["resources"]["limits"]["memory"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in spec.get("volumes", [])} | {"data"}
    options = cluster_spec(ray_document(overlay))["autoscalerOptions"]
    assert options["securityContext"]["readOnlyRootFilesystem"]


@every_overlay
def test_secrets_are_named_and_never_written_down(overlay: str) -> None:
    assert not [document for document in render(overlay) if document["kind"] == "Secret"]
    for template in pod_templates(overlay):
        for container in template["spec"]["containers"]:
            for variable in container.get("env", []):
                if any(word in variable["name"] for word in ("KEY", "TOKEN", "PASSWORD", "AUTH", "SECRET")):
                    assert "value" not in variable and variable["valueFrom"]["secretKeyRef"], variable["name"]


def test_the_runbook_makes_every_secret_that_is_named() -> None:
    runbook = (ROOT / "cluster/README.md").read_text()
    named = {
        reference["name"]
        for overlay in OVERLAYS
        for template in pod_templates(overlay)
        for container in template["spec"]["containers"]
        for reference in (
            *(source["secretRef"] for source in container.get("envFrom", [])),
            *(variable["valueFrom"]["secretKeyRef"] for variable in container.get("env", []) if "valueFrom" in variable),
        )
    }
    assert named == {"mmsr-redis", "mmsr-keys", "mmsr-hub", "mmsr-api-keys"} and all(name in runbook for name in named)


@every_overlay
def test_probes_look_at_what_lives(overlay: str) -> None:
    for template in pod_templates(overlay):
        role = template["metadata"]["labels"]["mmsr/role"]
        for container in template["spec"]["containers"]:
            if role == "submitter":
                continue
            assert container["readinessProbe"] and container["livenessProbe"]
            if role in ("redis", "answers"):
                continue
            port = container["livenessProbe"]["httpGet"]["port"]
            assert port == (8265 if role == "head" else 52365)
            assert container["readinessProbe"]["httpGet"]["port"] == (8000 if overlay.endswith("serve") and role != "head" else port)


@every_overlay
def test_budgets_and_policies_select_pods_that_exist(overlay: str) -> None:
    pods = [template["metadata"]["labels"] for template in pod_templates(overlay)]
    roles = {labels["mmsr/role"] for labels in pods}
    for document in render(overlay):
        if document["kind"] == "PodDisruptionBudget":
            role = document["spec"]["selector"]["matchLabels"]["mmsr/role"]
            assert role in roles or (role == "learner" and overlay.endswith("serve"))
        if document["kind"] == "NetworkPolicy":
            assert any(_selected(document["spec"]["podSelector"], labels) for labels in pods), document["metadata"]["name"]
    for labels in pods:  # nobody is left open
        assert any(
            _selected(document["spec"]["podSelector"], labels) and "Ingress" in document["spec"]["policyTypes"]
            for document in render(overlay)
            if document["kind"] == "NetworkPolicy"
        )


def _selected(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for rule in selector.get("matchExpressions", []):
        if (labels.get(rule["key"]) in rule["values"]) is not (rule["operator"] == "In"):
            return False
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())


@every_overlay
def test_volumes_and_configs_are_there(overlay: str) -> None:
    documents = render(overlay)
    claims = {document["metadata"]["name"] for document in documents if document["kind"] == "PersistentVolumeClaim"}
    maps = {document["metadata"]["name"] for document in documents if document["kind"] == "ConfigMap"}
    for template in pod_templates(overlay):
        for volume in template["spec"].get("volumes", []):
            assert volume.get("persistentVolumeClaim", {}).get("claimName", "mmsr-shared") in claims
            assert volume.get("configMap", {}).get("name", "mmsr-config") in maps
    assert config_of(overlay).run.dir == "/shared/runs"


@pytest.mark.parametrize("overlay", [overlay for overlay in OVERLAYS if overlay.endswith("serve")])
def test_the_service_names_an_application_that_exists(overlay: str) -> None:
    serve = yaml.safe_load(ray_document(overlay)["spec"]["serveConfigV2"])
    (application,) = serve["applications"]
    module, _, name = application["import_path"].partition(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    (build,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    assert len(build.args.args) == 1, "Serve's application builders take the arguments as one dictionary"
    file = application["args"]["config"]
    assert file.startswith("/etc/mmsr/")
    config = config_of(overlay, file.removeprefix("/etc/mmsr/"))
    assert config.serving.host == serve["http_options"]["host"], "what Serve binds to decides whether keys are needed"
    assert serve["http_options"]["request_timeout_s"] > config.serving.request_seconds
