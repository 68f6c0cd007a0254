"""What goes to a cluster with a job, and under which name. Pure.

Promise: nothing secret is in it, for Ray's dashboard shows all of it; a job with a name of its own runs once at a time.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsr_ray.nodes import resources

EXCLUDES = [".git", ".venv", "runs"]  # of what is shipped to the cluster, beside what .gitignore names
INSTALL_SECONDS = 1800  # of 4 GB of packages on a node; Ray keeps them for the next job


@dataclass(frozen=True)
class Driver:
    """Where the entrypoint runs, and what its nodes are given first."""

    cpus: float = 0.0  # above 0: on a node with CPUs, so not on a head that has none, and so it outlives such a head
    node: str = ""  # custom resource of that node
    install: str = ""  # extra of pyproject.toml; "": the nodes have everything

    def options(self) -> list[str]:
        """Of `ray job submit`."""
        made = ["--runtime-env-json", json.dumps(self._runtime())]
        if self.cpus:
            made += ["--entrypoint-num-cpus", f"{self.cpus:g}"]
        if self.node:
            made += ["--entrypoint-resources", json.dumps(resources(self.node))]
        return made

    def _runtime(self) -> dict[str, Any]:
        made: dict[str, Any] = {"excludes": EXCLUDES, "env_vars": {"PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"}}
        if self.install:  # as a package: vLLM finds our weight transfer by its entry point, which a folder on the path has not
            made["pip"] = [f"${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}[{self.install}]"]
            made["config"] = {"setup_timeout_seconds": INSTALL_SECONDS}
        return made


def identity_of(entrypoint: list[str]) -> str:
    """A new one, named for the script."""
    name = next((Path(part).stem for part in entrypoint if part.endswith(".py")), "job")
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def again(wanted: str, known: dict[str, bool]) -> tuple[str, bool]:
    """The submission id to use for `wanted`, and whether that job runs already. `known`: ids of the cluster and whether each has ended.

    Ray takes no id twice: the second submission of `mine` is `mine.2`.
    """
    attempts = {1: wanted} | {
        int(number): name for name in known for stem, _, number in [name.rpartition(".")] if stem == wanted and number.isdigit()
    }
    for name in attempts.values():
        if not known.get(name, True):
            return name, True
    newest = max(attempts) if wanted in known else 0
    return (f"{wanted}.{newest + 1}" if newest else wanted), False
