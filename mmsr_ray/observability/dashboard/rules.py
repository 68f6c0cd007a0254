"""The alerts as Prometheus' rule file, and as the object that the Prometheus operator reads. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from mmsr_ray.observability.dashboard.alerts import Alert

HEADER = "# Made by python -m mmsr_ray.observability.dashboard; the alerts stand in mmsr_ray/observability/dashboard/alerts.py.\n"
NAME = "mmsr-ray"


def rule_file(alerts: Sequence[Alert]) -> str:
    """For `rule_files` of a prometheus.yml."""
    return HEADER + _yaml({"groups": _groups(alerts)})


def prometheus_rule(alerts: Sequence[Alert]) -> str:
    """A PrometheusRule, of monitoring.coreos.com/v1."""
    metadata = {"name": NAME, "namespace": "mmsr", "labels": {"app.kubernetes.io/part-of": "mmsr"}}
    return HEADER + _yaml(
        {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": metadata, "spec": {"groups": _groups(alerts)}}
    )


def _groups(alerts: Sequence[Alert]) -> list[dict[str, Any]]:
    return [{"name": NAME, "rules": [_rule(alert) for alert in alerts]}]


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.waits,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "description": alert.todo},
    }


def _yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, width=10_000)
