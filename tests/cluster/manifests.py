"""The manifests of cluster/ as kubectl renders them, and KubeRay's schemas."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from jobs.check_cluster import ROOT, Document, cluster_spec, settings, worker_groups
from mmsr_ray.config import Config

OVERLAYS = sorted(str(file.parent.relative_to(ROOT / "cluster/overlays")) for file in ROOT.glob("cluster/overlays/*/*/kustomization.yaml"))
KUBERAY = ROOT.parent / "shared" / "kuberay"
KUBERNETES = "1.34"


@cache
def render(overlay: str) -> tuple[Document, ...]:
    """Skips where kubectl is absent."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders the overlays, is not installed")
    done = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "cluster/overlays" / overlay)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def ray_document(overlay: str) -> Document:
    """The one custom resource of KubeRay."""
    (found,) = (document for document in render(overlay) if document["apiVersion"] == "ray.io/v1")
    return found


def pod_templates(overlay: str) -> Iterator[Document]:
    for document in render(overlay):
        if document["apiVersion"] == "ray.io/v1":
            yield from (group["template"] for group in groups(document))
            if "submitterPodTemplate" in document["spec"]:
                yield document["spec"]["submitterPodTemplate"]
        elif "template" in document.get("spec", {}):
            yield document["spec"]["template"]


def groups(document: Document) -> list[Document]:
    """Head first."""
    spec = cluster_spec(document)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def nodes(document: Document, *, largest: bool) -> list[dict[str, float]]:
    """Resources of the nodes there are when every group has its largest size, or its least."""
    return [dict(group.resources) for group in worker_groups(document) for _ in range(group.most if largest else group.least)]


def config_of(overlay: str, file: str = "config.yaml") -> Config:
    """The config that the overlay's ConfigMap holds."""
    (text,) = (document["data"][file] for document in render(overlay) if document["kind"] == "ConfigMap")
    return settings(text)


# ---------------------------------------------------------------------------------------------------- schemas


def complaints(document: Document) -> list[str]:
    """What KubeRay's schema, and Kubernetes' for every pod of it, say against a document; unknown fields included."""
    if document["apiVersion"] != "ray.io/v1":
        return _kubernetes(document)
    validator = jsonschema.Draft202012Validator(_kuberay(document["kind"]))
    found = [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in validator.iter_errors(document)]
    for group in groups(document):
        found += _kubernetes({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": group["template"]["spec"]})
    return found


def _kubernetes(document: Document) -> list[str]:
    return _checked(json.dumps(document, sort_keys=True))


@cache
def _checked(text: str) -> list[str]:
    """Overlays share most of their documents and pods: each is looked at once."""
    try:
        kubernetes_validate.validate(json.loads(text), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'/'.join(map(str, error.path))}: {error.message[:200]}"]
    return []


@cache
def _kuberay(kind: str) -> Document:
    """Skips where the schemas are not beside the checkout."""
    file = KUBERAY / f"{kind}.schema.json"
    if not file.is_file():
        pytest.skip(f"KubeRay's schema is not at {file}")
    schema = _strict(json.loads(file.read_text())["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _strict(schema: Any) -> Any:
    """An API server's reading of a CRD schema in JSON Schema's words; unknown fields are refused, as `kubectl apply` refuses them."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if made.pop("nullable", False) and "type" in made:
        made["type"] = [made["type"], "null"]
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made
