"""The tools' numbers for Prometheus, through Ray's metrics: whatever scrapes Ray sees them, live.

Promise: thin, an `Observer` and nothing else. Names begin with mmsr_tools_; a tag never holds what a user or the web wrote.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

from mmsr_ray.types import ToolResult

_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]


class Exported:
    """To be made in an actor or task of Ray. `run` tells the runs of a cluster apart."""

    def __init__(self, run: str) -> None:
        tags = {"run": run}
        service, tool = ("run", "provider", "outcome"), ("run", "tool", "outcome")
        self._requests = Counter("mmsr_tools_requests", "Requests to services that ended", service)
        self._request_seconds = Histogram("mmsr_tools_request_seconds", "Seconds of one request", _SECONDS, ("run", "provider"))
        self._cost = Counter("mmsr_tools_cost_usd", "What services charged, at the configured prices", ("run", "provider"))
        self._calls = Counter("mmsr_tools_calls", "Calls of the agent's tools", (*tool, "cached", "partial"))
        self._call_seconds = Histogram("mmsr_tools_call_seconds", "Seconds of one tool call", _SECONDS, ("run", "tool"))
        for metric in (self._requests, self._request_seconds, self._cost, self._calls, self._call_seconds):
            metric.set_default_tags(tags)

    def request(self, service: str, outcome: str, seconds: float, cost_usd: float) -> None:
        self._requests.inc(1.0, {"provider": service, "outcome": outcome})
        self._request_seconds.observe(seconds, {"provider": service})
        if cost_usd:
            self._cost.inc(cost_usd, {"provider": service})

    def call(self, result: ToolResult) -> None:
        tool, outcome = str(result.kind), str(result.failure or "ok")
        self._calls.inc(1.0, {"tool": tool, "outcome": outcome, "cached": str(result.cached), "partial": str(result.partial)})
        self._call_seconds.observe(result.seconds, {"tool": tool})
