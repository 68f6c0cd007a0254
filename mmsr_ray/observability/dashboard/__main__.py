"""Writes the dashboard and the rules to cluster/monitoring, or to the folder that is named.

    python -m mmsr_ray.observability.dashboard [FOLDER]

Promise: each file appears whole or not at all; a test compares what is committed with what this writes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmsr_ray.observability.dashboard.alerts import Patience, alerts
from mmsr_ray.observability.dashboard.grafana import dashboard
from mmsr_ray.observability.dashboard.panels import ROWS
from mmsr_ray.observability.dashboard.rules import prometheus_rule, rule_file


def files() -> dict[str, str]:
    """Name of a file in cluster/monitoring -> its content."""
    watched = alerts(Patience())
    return {"mmsr.json": dashboard(ROWS), "mmsr-rules.yaml": rule_file(watched), "prometheusrule.yaml": prometheus_rule(watched)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("cluster", "monitoring"))
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        partial = folder / f"{name}.partial"
        partial.write_text(content)
        partial.replace(folder / name)


if __name__ == "__main__":
    main()
