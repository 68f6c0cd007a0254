"""Host memory of a run by kind of process, and whether it grows from step to step.

Counted is what processes have for themselves (USS), this one included. Growth is that over the last half of the steps, from end to end of
a straight line through the readings: a single reading moves by more than a small leak makes in many steps. A ratio of 1 is no growth;
(value - reference) / the steps between is MiB a step. Caches with a bound may still fill (`learner.pictures`, `agent.pictures`,
`rollout.pixels`, `mmsr_ray.kernels`, and Ray's record of its last 100,000 tasks in its GCS): a leak is what goes on in a longer run.
"""

from __future__ import annotations

import statistics
from typing import Any

import psutil

from jobs.benchmark_rows import row

MIB = 2**20
HERE, REST, ALL = "the algorithm's process", "Ray's other processes and the web", "all processes"
GCS, RUNNER, ENGINES = "Ray's GCS", "ray::SearchEnvRunner", "engines"
KINDS = {  # how a process's command begins -> what it is
    "ray::LearnerRank": "learner ranks",
    RUNNER: "env runners",
    "ray::ToolActor": "tools",
    "ray::QuotaActor": "tools",
    "ray::WeightStore": "the weight store",
    "ray::DataFeeder": "the data feeder",
}


def resident() -> dict[str, float]:
    """MiB that the processes of this benchmark have for themselves, by kind, and of all of them."""
    found: dict[str, float] = {}
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        try:
            kind = HERE if process == here else _kind(process)
            found[kind] = found.get(kind, 0.0) + process.memory_full_info().uss / MIB
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended meanwhile
            continue
    return {ALL: sum(found.values()), **found}


def _kind(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    if process.name() == "gcs_server":
        return GCS
    if found := [kind for start, kind in KINDS.items() if command.startswith(start)]:
        return found[0]
    inside = any(" ".join(above.cmdline()).startswith(RUNNER) for above in process.parents())  # not every engine gives itself a title
    return ENGINES if inside else REST


def growth_rows(readings: list[dict[str, float]], label: str, suite: str) -> list[dict[str, Any]]:
    """A row for each kind that the last reading has. `readings` are of one step after the other, two at least."""
    half = len(readings) // 2
    steps = range(half, len(readings) + 1)  # the first reading is of step 1
    made = []
    for kind in readings[-1]:
        values = [reading.get(kind, 0.0) for reading in readings[half - 1 :]]
        slope, start = statistics.linear_regression(steps, values)
        after, before = start + slope * len(readings), start + slope * half
        made.append(row(f"host memory of {kind}, after {label}", after, "MiB", f"after {half}", max(before, 1.0), suite))
    return made
