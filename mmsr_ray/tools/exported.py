"""The tools' numbers for Prometheus, through Ray's metrics: whatever scrapes Ray sees them, live.

Promise: thin, an `Observer` and nothing else. The metrics stand in metrics.catalogue; a label never holds what a user or the web wrote.
"""

from __future__ import annotations

from mmsr_ray.metrics import catalogue as m
from mmsr_ray.metrics.exported import counter, histogram
from mmsr_ray.types import ToolResult


class Exported:
    """To be made in an actor or task of Ray. `run` tells the runs of a cluster apart."""

    def __init__(self, run: str) -> None:
        given = {"run": run}
        self._requests = counter(m.TOOL_REQUESTS, given)
        self._request_seconds = histogram(m.TOOL_REQUEST_SECONDS, given)
        self._cost = counter(m.TOOL_COST, given)
        self._calls = counter(m.TOOL_CALLS, given)
        self._call_seconds = histogram(m.TOOL_CALL_SECONDS, given)

    def request(self, service: str, outcome: str, seconds: float, cost_usd: float) -> None:
        self._requests.inc(1.0, {"provider": service, "outcome": outcome})
        self._request_seconds.observe(seconds, {"provider": service})
        if cost_usd:
            self._cost.inc(cost_usd, {"provider": service})

    def call(self, result: ToolResult) -> None:
        tool, outcome = str(result.kind), str(result.failure or "ok")
        self._calls.inc(1.0, {"tool": tool, "outcome": outcome, "cached": str(result.cached), "partial": str(result.partial)})
        self._call_seconds.observe(result.seconds, {"tool": tool})
