"""PromQL for what panels and alerts have in common. Pure.

Ray labels every value with the process it comes from, and a restarted process is another one: sums and maxima drop that label.
"""

from __future__ import annotations

from mmsr_ray.metrics.catalogue import Metric
from mmsr_ray.types import ToolFailure

WINDOW = "$__rate_interval"  # Grafana's: at least four scrapes
FINE = "|".join(["ok", ToolFailure.NO_RESULTS, ToolFailure.BUDGET])  # outcomes of a tool's call that blame no service


def series(metric: Metric, *conditions: str, chosen: bool = True) -> str:
    """Its series with label conditions such as `part="sync"`; `chosen`: of the runs that the dashboard's variable names."""
    if chosen and "run" in metric.labels:
        conditions = ('run=~"$run"', *conditions)
    return metric.series + ("{" + ",".join(conditions) + "}" if conditions else "")


def last(metric: Metric, *by: str, where: tuple[str, ...] = (), chosen: bool = True) -> str:
    """A gauge as it is: one value per run, and per value of the labels `by`."""
    labels = [label for label in ("run",) if label in metric.labels] + list(by)
    return f"max by ({', '.join(labels)}) ({series(metric, *where, chosen=chosen)})"


def grown(metric: Metric, window: str = "15m", chosen: bool = True) -> str:
    """Of a gauge that only grows while its process lives: by how much, per run."""
    return f"sum by (run) (increase({series(metric, chosen=chosen)}[{window}]))"


def rate(metric: Metric, *by: str, where: tuple[str, ...] = (), window: str = WINDOW, chosen: bool = True) -> str:
    """Of a counter, or of a histogram's `_count`: events per second."""
    return _sum(f"rate({series(metric, *where, chosen=chosen)}[{window}])", by)


def quantile(share: float, metric: Metric, *by: str, where: tuple[str, ...] = ()) -> str:
    """Of a histogram: what the share of values stays within, as far as its buckets tell."""
    buckets = metric.series + "_bucket" + series(metric, *where).removeprefix(metric.series)
    return f"histogram_quantile({share}, sum by ({', '.join(('le', *by))}) (rate({buckets}[{WINDOW}])))"


def share(part: str, whole: str) -> str:
    """`part` over `whole`, 0 where there is no such part; both have the same labels."""
    return f"({part} or 0 * {whole}) / {whole}"


def _sum(expr: str, by: tuple[str, ...]) -> str:
    return f"sum by ({', '.join(by)}) ({expr})" if by else f"sum ({expr})"
