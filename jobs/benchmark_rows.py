"""One row of a benchmark's JSON, as the design names its fields."""

from __future__ import annotations

from typing import Any


def row(name: str, value: float, unit: str, reference: str, reference_value: float, suite: str) -> dict[str, Any]:
    """`ratio` is value / reference_value: both measured in the same run on the same work, or the second is a goal."""
    return {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "reference": reference,
        "reference_value": round(reference_value, 4),
        "ratio": round(value / reference_value, 4),
        "command": f"python jobs/benchmark.py suite={suite}",
    }
