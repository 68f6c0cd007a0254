from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmsr_ray.algorithms.record import MetricsFile, rollout_record, staleness_of
from mmsr_ray.types import Need
from tests.algorithms.values import group, summary


def test_ratios_count_calls_and_responses_apart() -> None:
    record = rollout_record(
        [
            group(summary(image_searches=1, text_searches=1, need=Need.MIX), summary(correct=False, reward=0.0, need=Need.MIX)),
            group(summary(text_searches=1, need=Need.TEXT), summary(well_formed=False, need=Need.TEXT)),
        ],
        search_limit=2,
    )
    assert record["search_ratio_calls"] == pytest.approx(3 / 8)
    assert record["search_ratio_responses"] == pytest.approx(2 / 4)
    assert record["searches_image"] == pytest.approx(1 / 4)
    assert record["searches_text"] == pytest.approx(2 / 4)
    assert record["by_need"] == {"mix_required": 1.0, "text_required": 0.5}
    assert (record["accuracy"], record["format_ok"], record["reward"]) == (0.75, 0.75, 0.75)
    assert (record["groups"], record["trajectories"], record["sampled_tokens"]) == (2, 4, 80)
    json.dumps(record)


def test_staleness_is_measured_and_bounded() -> None:
    rows = [group(summary(version_min=3, version_max=4)), group(summary(version_min=-1, version_max=-1))]
    assert staleness_of(rows, version=4, bound=1) == 1
    with pytest.raises(AssertionError, match="bound"):
        staleness_of(rows, version=5, bound=1)
    with pytest.raises(AssertionError, match="bound"):
        staleness_of(rows, version=3, bound=1)  # weights from the future


def test_a_resumed_run_rewrites_the_steps_it_repeats(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    file.truncate(0)  # nothing there yet
    for step in (1, 2, 3):
        file.append({"step": step})
    with file.path.open("a") as torn:
        torn.write('{"step": 4, "rew')
    file.truncate(2)
    file.append({"step": 3, "again": True})
    assert [json.loads(line) for line in file.path.read_text().splitlines()] == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_process_supersedes_the_steps_that_it_does_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in (1, 2, 3):
        first.append({"step": step, "by": "first"})
    path.open("a").write('{"step": 4, "rew')  # killed while it wrote
    again = MetricsFile(path)
    again.append({"step": 2, "by": "again"})
    again.append({"step": 3, "by": "again"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["by"]) for line in lines] == [(1, "first"), (2, "again"), (3, "again")]
