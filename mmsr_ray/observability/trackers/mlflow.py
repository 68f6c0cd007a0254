"""MLflow, through its client: a server over HTTP, or whatever store the installed MLflow can open.

User, password and token are MLflow's own variables (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mmsr_ray.observability.trackers.port import TrackerError
from mmsr_ray.observability.trackers.settings import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

DEFAULTS = {  # of MLflow's variables: as it is, one call may take minutes, and an end is printed
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
PARAMS = 100  # of one request, MLflow's limit; likewise the next two
METRICS = 1_000
PARAM_CHARS = 6_000


class MlflowTracker:
    """One MLflow run over all submissions. MLflow keeps every value of a step, so none is told twice."""

    supersedes = False

    def __init__(self, tracking: TrackingConfig) -> None:
        """Raises TrackerError where package or address is missing, or the store cannot be opened. Asks no server yet."""
        if importlib.util.find_spec("mlflow") is None:
            raise TrackerError("run.trackers names mlflow, which is not installed: pip install 'mmsr-ray[trackers]', or leave it out")
        uri = tracking.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            raise TrackerError("run.trackers names mlflow, which has no address: set run.tracking.mlflow_uri or MLFLOW_TRACKING_URI")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        try:
            self._client: MlflowClient = MlflowClient(tracking_uri=uri)
        except (MlflowException, OSError) as error:
            raise TrackerError(f"run.trackers names mlflow, which does not open run.tracking.mlflow_uri: {error}") from error
        self._project = tracking.project
        self._run_id = ""
        self._told = (0, 0)  # the last step tried, and when: tried again with the same time it is the same value to MLflow

    def start(self, name: str, settings: Mapping[str, Any], run_id: str | None) -> str:
        if run_id is None:
            self._run_id = self._create(name, settings)
        else:
            self._client.update_run(run_id, status="RUNNING")
            self._run_id = run_id
        logger.info("MLflow: run %s of %s", self._run_id, self._project)
        return self._run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if self._told[0] != step:
            self._told = (step, round(time.time() * 1000))
        metrics = [Metric(name, value, self._told[1], step) for name, value in values.items()]
        for first in range(0, len(metrics), METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[first : first + METRICS])

    def close(self, *, ok: bool) -> None:
        if self._run_id:
            self._client.set_terminated(self._run_id, "FINISHED" if ok else "FAILED")

    def _create(self, name: str, settings: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(self._project)
        experiment = self._client.create_experiment(self._project) if found is None else found.experiment_id
        run = self._client.create_run(experiment, run_name=name)
        params = [Param(key, str(value)[:PARAM_CHARS]) for key, value in dotted(settings)]
        for first in range(0, len(params), PARAMS):
            self._client.log_batch(run.info.run_id, params=params[first : first + PARAMS])
        return run.info.run_id


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("run.name", value) of every setting in a nested mapping, as one writes it on the command line."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
