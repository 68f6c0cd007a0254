"""TensorBoard gets every finite number under a flat name, and a resumed run supersedes what it does again."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmsr_ray.observability.trackers import FOLDER, Trackers, flatten


def test_flatten() -> None:
    record = {
        "step": 3,
        "reward": 0.5,
        "by_need": {"image_required": 1},
        "kl": float("nan"),
        "note": "x",
        "none": None,
        "seconds": {"a": {"b": 2}},
    }
    assert dict(flatten(record)) == {"reward": 0.5, "by_need/image_required": 1.0, "seconds/a/b": 2.0}


def test_numbers_arrive_and_a_resume_replaces(tmp_path: Path) -> None:
    first = Trackers([], tmp_path)
    for step in (1, 2, 3):
        first.log(step, {"step": step, "reward": 0.1 * step, "seconds": {"learn": 1.0}})
    first.close()
    again = Trackers(["tensorboard"], tmp_path, first_step=3)
    again.log(3, {"reward": 0.9}, prefix="")
    again.log(1, {"loss": 4.0}, prefix="sft/")
    again.close()
    events = EventAccumulator(str(tmp_path / FOLDER))
    events.Reload()
    assert {"reward", "seconds/learn", "sft/loss"} <= set(events.Tags()["scalars"])
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("reward")] == [(1, 0.1), (2, 0.2), (3, 0.9)]


def test_unknown_tracker() -> None:
    with pytest.raises(ValueError, match=r"run\.trackers names nobody: choose from tensorboard"):
        Trackers(["nobody"], Path("unused"))
