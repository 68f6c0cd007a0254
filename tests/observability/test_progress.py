"""The live lines: what they say, that they keep the seconds, and that following a file shows each step once."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

from mmsr_ray.observability.progress import Progress, duration, read_records, step_line

RECORD = {
    "step": 12,
    "reward": 0.431,
    "accuracy": 0.4,
    "by_need": {"search_free": 0.0, "image_required": 1.02, "text_required": 0.95, "mix_required": 1.8},
    "tokens_per_second": 1240.3,
    "seconds": {"rollout": 1.8, "learn": 1.1, "sync": 0.1, "total": 3.1},
    "seconds_left": 725.0,
}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_step_line() -> None:
    assert step_line(RECORD, total=300) == (
        "step 12/300  reward 0.43  accuracy 0.40  searches free 0.00 image 1.02 text 0.95 mix 1.80"
        "  1,240 tok/s  3.1 s (rollout 1.8, learn 1.1, sync 0.1)  12 min 05 s left"
    )


def test_a_real_data_set_has_no_needs_and_missing_parts_are_left_out() -> None:
    assert step_line({"step": 1, "search_ratio_responses": 0.5, "by_need": {}, "reward": None}) == "step 1  searching 50%"
    evaluation = {"on_demand": {"accuracy": 0.625}, "rag": {"accuracy": None}, "best_accuracy": 0.7}
    assert step_line({"step": 2, "evaluation": evaluation}) == "step 2  on_demand on test questions 62.5%"


def test_stages_keep_their_seconds() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(out, clock)
    for name, seconds in [("prepare", 2.0), ("train", 30.0), ("evaluate", 5.0), ("train", 10.0)]:
        progress.stage(name)
        clock.now += seconds
    progress.finish()
    assert progress.seconds == {"prepare": 2.0, "train": 40.0, "evaluate": 5.0}
    assert out.getvalue().splitlines()[-1] == "[0:00:47] == done in 47 s"


def test_sft_is_shown_every_few_seconds_and_at_the_end() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(out, clock)
    progress.stage("warm start")
    for step in range(1, 101):
        clock.now += 0.3
        progress.sft(step, 100, loss=1.0)
    lines = out.getvalue().splitlines()[1:]
    assert 5 <= len(lines) <= 8
    assert lines[-1] == "[0:00:30] sft 100/100  loss 1.000  0 s left"


def lines_of(out: io.StringIO) -> list[str]:
    return [line.split("] ")[1].split("  ")[0] for line in out.getvalue().splitlines()]


def wait_for(out: io.StringIO, count: int) -> None:
    deadline = time.monotonic() + 10
    while len(lines_of(out)) < count:
        assert time.monotonic() < deadline, out.getvalue()
        time.sleep(0.05)


def test_follow_shows_new_steps_once_also_after_a_run_went_back(tmp_path: Path) -> None:
    path, out = tmp_path / "metrics.jsonl", io.StringIO()
    path.write_text(json.dumps({"step": 1}) + "\n")
    with Progress(out).follow(path, total=5):
        with path.open("a") as file:
            file.write(json.dumps({"step": 2}) + "\n" + json.dumps({"step": 3}) + '\n{"st')
        wait_for(out, 2)
        path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2)))  # back to a checkpoint at step 2
        time.sleep(0.8)
        with path.open("a") as file:
            file.write(json.dumps({"step": 3}) + "\n")
        wait_for(out, 3)
        with path.open("a") as file:
            file.write(json.dumps({"step": 4}) + "\n")
    assert lines_of(out) == ["step 2/5", "step 3/5", "step 3/5", "step 4/5"]


def test_torn_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    path.write_text('{"step": 1}\n{"step": 2, "rew')
    assert read_records(path) == [{"step": 1}]


def test_durations_in_words() -> None:
    assert [duration(s) for s in (0.4, 59, 61, 3600, 12_345)] == ["0 s", "59 s", "1 min 01 s", "1 h 00 min", "3 h 25 min"]
