"""The catalogue keeps its own rules, and what is exported stands in it."""

from __future__ import annotations

import re
from pathlib import Path

import mmsr_ray
from mmsr_ray.metrics.catalogue import METRICS, Kind

PACKAGE = Path(mmsr_ray.__file__).parent
LABELS = {
    "run", "part", "phase", "of", "kind", "need", "model", "workflow", "stage", "how", "runner", "provider", "tool", "outcome", "cached", "partial",
}  # fmt: skip


def test_names_and_labels_are_prometheus_own_way() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"mmsr_(train|rollout|tools|serving)_[a-z_]+", name), name
        assert set(metric.labels) <= LABELS, f"{name}: a new label must take few values, known beforehand"
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM), name
        assert not name.endswith(("_total", "_bucket", "_sum", "_count")), f"{name}: Prometheus gives these endings"
        assert metric.help and metric.help[0].isupper() and not metric.help.endswith(".")


def test_nobody_makes_a_metric_past_the_catalogue() -> None:
    makers = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if "ray.util.metrics" in path.read_text()]
    assert makers == [Path("metrics", "exported.py")]
