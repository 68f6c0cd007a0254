"""TensorBoard gets every finite number under a flat name, and a resumed run supersedes what it does again."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmsr_ray.algorithms.record import MetricsFile
from mmsr_ray.observability.trackers.follow import following, open_trackers
from mmsr_ray.observability.trackers.settings import TrackingConfig
from mmsr_ray.observability.trackers.tensorboard import FOLDER


def test_numbers_arrive_and_a_resume_replaces(tmp_path: Path) -> None:
    for rewards in ({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}, {3: 0.9}):
        with following(open_trackers([], TrackingConfig(), tmp_path), tmp_path, name="run", config={}, end_seconds=120):
            file = MetricsFile(tmp_path / "metrics.jsonl")
            for step, reward in rewards.items():
                file.append({"step": step, "reward": reward, "seconds": {"learn": 1.0}})
    events = EventAccumulator(str(tmp_path / FOLDER))
    events.Reload()
    assert {"reward", "seconds/learn"} <= set(events.Tags()["scalars"])
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("reward")] == [(1, 0.1), (2, 0.2), (3, 0.9)]
