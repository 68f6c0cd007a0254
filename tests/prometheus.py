"""A real Prometheus beside a test: scrapes once a second, evaluates rules once a second, answers queries."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmsr_ray.observability.dashboard.panels import Panel, Query
from mmsr_ray.observability.dashboard.queries import WINDOW

INSTALLED = shutil.which("prometheus") is not None and shutil.which("promtool") is not None
needed = pytest.mark.skipif(not INSTALLED, reason="needs Prometheus with promtool (Debian's package prometheus)")
_START_SECONDS = 60.0


@dataclass
class Prometheus:
    """`began`: of the time that `missing` looks at, seconds since 1970."""

    url: str
    began: float = field(default_factory=time.time)

    def ask(self, path: str, **parameters: str | float) -> Any:
        """`data` of an answer of its HTTP API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.url}/api/v1/{path}?{query}", timeout=30) as reply:
            answer = json.load(reply)
        assert answer["status"] == "success", answer
        return answer["data"]

    def missing(self, panels: Sequence[Panel], true_here: Sequence[str] = ()) -> list[str]:
        """Queries that have given no finite value yet. Those with a condition count where it is `true_here`."""
        wanted = [(panel, query) for panel in panels for query in panel.queries if not query.when or query.when in true_here]
        return [f"{panel.title}: {query.expr}" for panel, query in wanted if not self._has_data(query)]

    def _has_data(self, query: Query) -> bool:
        expr = query.expr.replace(WINDOW, "10s").replace("$run", ".*")
        found = self.ask("query_range", query=expr, start=self.began, end=time.time(), step=1)
        return any(math.isfinite(float(value)) for series in found["result"] for _, value in series["values"])

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}

    def rules(self) -> dict[str, str]:
        """Name of an alert -> its health: ok, err, or unknown before its first evaluation."""
        return {rule["name"]: rule["health"] for group in self.ask("rules")["groups"] for rule in group["rules"]}


@contextmanager
def prometheus(folder: Path, scraped: dict[str, Any], rules: str = "") -> Iterator[Prometheus]:
    """`scraped`: how one job finds its targets, as in prometheus.yml; `rules`: a rule file."""
    (folder / "rules.yaml").write_text(rules)
    job = {"job_name": "ray", **scraped}
    settings = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "scrape_configs": [job]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings | {"rule_files": [str(folder / "rules.yaml")] if rules else []}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        _wait(f"http://{address}/-/ready", process, folder / "prometheus.log")
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
