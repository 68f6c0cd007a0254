"""The live lines of a job's log: which stage runs, and one line per training step.

Promise: display only. It never raises because of what it is given (a key that is missing is a part of the line that is
missing), it costs nothing worth measuring, and every stage's wall seconds are kept in `seconds` for summary.json.
Lines are plain text without control characters: a job's log is read in terminals, browsers and files alike.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

NEEDS = {"search_free": "free", "image_required": "image", "text_required": "text", "mix_required": "mix"}
SFT_EVERY_SECONDS = 5.0
FOLLOW_SECONDS = 0.5


class Progress:
    """`stage(name)` as a job goes on, `step` or `sft` inside a stage, `finish` at the end.

    `seconds`: wall seconds of each finished stage; a stage entered twice is summed.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._begun = self._stage_begun = clock()
        self._stage: str | None = None
        self._last_sft = float("-inf")
        self._first_sft = (0, 0.0)  # the first step shown in this stage and its time: what came before was set-up
        self._lock = threading.Lock()  # `follow` writes from its own thread
        self.seconds: dict[str, float] = {}

    def stage(self, name: str) -> None:
        """End the stage before, if any, and begin this one."""
        self._end_stage()
        self._stage, self._stage_begun = name, self._clock()
        self._write(f"== {name}")

    def finish(self) -> None:
        self._end_stage()
        self._write(f"== done in {duration(self._clock() - self._begun)}")

    def note(self, text: str) -> None:
        """A line of the job's own, such as one row of results."""
        self._write(text)

    def step(self, metrics: Mapping[str, Any], total: int | None = None) -> None:
        """One training step: `metrics` is a record of metrics.jsonl, `total` the number of steps of the run."""
        self._write(step_line(metrics, total))

    def sft(self, step: int, total: int, loss: float) -> None:
        """One supervised step, counted from 1; shown every few seconds and at the last."""
        now = self._clock()
        if self._first_sft[1] < self._stage_begun or step <= self._first_sft[0]:
            self._first_sft = (step, now)
        if step < total and now - self._last_sft < SFT_EVERY_SECONDS:
            return
        self._last_sft = now
        first, began = self._first_sft
        left = f"  {duration((now - began) / (step - first) * (total - step))} left" if step > first else ""
        self._write(f"sft {step}/{total}  loss {loss:.3f}{left}")

    @contextmanager
    def follow(self, path: Path, total: int | None = None) -> Iterator[None]:
        """Inside, every record that is appended to `path` (a metrics.jsonl, which may not exist yet) becomes a step line."""
        stop = threading.Event()
        seen = last_step(read_records(path))
        thread = threading.Thread(target=self._follow, args=(path, total, seen, stop), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _follow(self, path: Path, total: int | None, seen: int, stop: threading.Event) -> None:
        known: tuple[int, int] | None = None
        last = False
        while not last:
            last = stop.wait(FOLLOW_SECONDS)  # one more look after the end
            now = size_and_time(path)
            if now == known:
                continue
            known = now
            records = read_records(path)
            for record in records:
                if record.get("step", 0) > seen:
                    self.step(record, total)
            seen = last_step(records)  # lower than before when a run went back to its checkpoint: the steps come again

    def _end_stage(self) -> None:
        if self._stage is not None:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + self._clock() - self._stage_begun
            self._stage = None

    def _write(self, text: str) -> None:
        with self._lock:
            self._stream.write(f"[{clock_time(self._clock() - self._begun)}] {text}\n")
            self._stream.flush()


def step_line(metrics: Mapping[str, Any], total: int | None = None) -> str:
    """A record of metrics.jsonl in one line; parts whose key is missing or null are left out."""
    step = metrics.get("step", 0)
    parts = [f"step {step}/{total}" if total else f"step {step}"]
    parts += [f"{name} {metrics[name]:.2f}" for name in ("reward", "accuracy") if metrics.get(name) is not None]
    parts += [
        f"{workflow} on test questions {row['accuracy']:.1%}"
        for workflow, row in (metrics.get("evaluation") or {}).items()
        if isinstance(row, Mapping) and row.get("accuracy") is not None
    ]
    needs = metrics.get("by_need") or {}
    searches = [f"{label} {needs[need]:.2f}" for need, label in NEEDS.items() if needs.get(need) is not None]
    if searches:
        parts.append("searches " + " ".join(searches))
    elif metrics.get("search_ratio_responses") is not None:
        parts.append(f"searching {metrics['search_ratio_responses']:.0%}")
    if metrics.get("tokens_per_second") is not None:
        parts.append(f"{metrics['tokens_per_second']:,.0f} tok/s")
    seconds = metrics.get("seconds") or {}
    spent = [f"{name} {seconds[name]:.1f}" for name in ("rollout", "learn", "sync") if seconds.get(name) is not None]
    if spent:
        parts.append(f"{seconds['total']:.1f} s ({', '.join(spent)})" if seconds.get("total") is not None else ", ".join(spent))
    if (metrics.get("tools") or {}).get("cost_usd"):
        parts.append(f"{metrics['tools']['cost_usd']:.4f} USD")
    if metrics.get("seconds_left") is not None:
        parts.append(f"{duration(metrics['seconds_left'])} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """42 s, 7 min 05 s, 3 h 20 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clock_time(seconds: float) -> str:
    """h:mm:ss since the job began."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def read_records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, in order; a line that a kill or a write in progress left torn is skipped."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def last_step(records: list[dict[str, Any]]) -> int:
    return max((int(record.get("step", 0)) for record in records), default=0)


def size_and_time(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written; None while there is none."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns
