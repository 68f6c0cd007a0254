"""What a run's processes have for themselves, and whether that grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.benchmark_memory import ALL, HERE, REST, growth_rows

ROOT = Path(__file__).parents[2]
HOLD = "import sys; held = b'x' * (200 << 20); print(len(held), flush=True); sys.stdin.read()"
ALONE = f"""
import json, subprocess, sys
from jobs.benchmark_memory import resident
before = resident()
with subprocess.Popen([sys.executable, "-c", {HOLD!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
    child.stdout.readline()
    found = resident()
    child.stdin.close()
print(json.dumps([before, found]))
"""


def test_a_reading_holds_this_process_and_those_that_it_started() -> None:
    """In a process of its own: below that of the tests may be what others left running."""
    said = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    before, found = json.loads(said)
    assert before[ALL] == pytest.approx(before[HERE])
    assert found[REST] == pytest.approx(205, abs=15)
    assert found[ALL] == pytest.approx(found[HERE] + found[REST])


def test_growth_is_that_of_the_last_half_and_no_outlier_hides_or_makes_it() -> None:
    filled = [100.0 + 10 * min(step, 20) for step in range(1, 51)]  # a cache that is full at step 20
    leak = [300.0 + 0.5 * step for step in range(1, 51)]
    jumps = [400.0 + (30.0 if step == 50 else 0.0) for step in range(1, 51)]
    readings = [{"a": a, "b": b, "c": c} for a, b, c in zip(filled, leak, jumps, strict=True)]
    full, leaking, jumping = growth_rows(readings, "50 steps", "gpu")
    assert full["ratio"] == 1.0
    assert (leaking["value"] - leaking["reference_value"]) / 25 == pytest.approx(0.5)
    assert jumping["ratio"] < 1.02


def test_a_kind_that_came_late_is_no_error() -> None:
    (only,) = growth_rows([{}, {}, {"a": 4.0}, {"a": 8.0}], "4 steps", "gpu")
    assert only["value"] == pytest.approx(8.0)
