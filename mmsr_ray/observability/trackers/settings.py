"""Settings of the trackers and what they must satisfy. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsr_ray.observability.trackers.port import bare_url

NAMES = ("tensorboard", "wandb", "mlflow")


@dataclass
class TrackingConfig:
    """Where the records of `run.trackers` go. Keys, and what else the services know, are variables of their own libraries."""

    project: str = "mmsr-ray"  # Weights & Biases: the project; MLflow: the experiment
    entity: str = ""  # Weights & Biases: user or team; "": the key's own
    mlflow_uri: str = ""  # such as http://host:5000; "": the variable MLFLOW_TRACKING_URI


def complaint(names: Sequence[str], c: TrackingConfig) -> str:
    """One sentence about a setting that cannot be; "" when all is well."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        return f"run.trackers names {', '.join(unknown)}: choose from {', '.join(NAMES)}"
    if not c.project:
        return "run.tracking.project must not be empty: it is the project or experiment that holds the run"
    if "://" in c.mlflow_uri and bare_url(c.mlflow_uri) != c.mlflow_uri:
        return (
            "run.tracking.mlflow_uri holds more than an address: put user and password into the variables "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return ""
