"""The table of an evaluation, as a terminal and a log show it."""

from __future__ import annotations

import io

from mmsr_ray.evaluation.metrics import measure
from mmsr_ray.observability.table import write_table
from mmsr_ray.types import Need
from tests.evaluation.test_metrics import summary


def row(correct: int, workflow: str) -> dict:
    summaries = [summary(image=1, correct=number < correct, need=Need.IMAGE, uid=str(number)) for number in range(40)]
    made = measure(summaries, name="m", split="fvqa_test", search_limit=2, infra_errors=3)
    return made | {"model": "lmms-lab/MMSearch-R1-7B", "benchmark": "fvqa_test", "workflow": workflow}


def test_every_row_is_a_line_with_its_interval() -> None:
    stream = io.StringIO()
    write_table([row(30, "on_demand"), row(0, "direct")], stream)
    lines = [line for line in stream.getvalue().splitlines() if "MMSearch" in line]
    assert lines[0].split() == "lmms-lab/MMSearch-R1-7B fvqa_test on_demand 40 75.0 % [59.8, 85.8] 50.0 % 100.0 % 100.0 % 100.0 % 3".split()
    assert len(lines) == 2 and all(len(line) <= 132 for line in stream.getvalue().splitlines())
    assert "\x1b" not in stream.getvalue()


def test_what_is_not_defined_is_a_dash() -> None:
    stream = io.StringIO()
    empty = measure([], name="m", split="t", search_limit=2) | {"model": "m", "benchmark": "t", "workflow": "rag"}
    write_table([empty], stream)
    assert "m t rag 0 - - - - - - 0".split() in [line.split() for line in stream.getvalue().splitlines()]
