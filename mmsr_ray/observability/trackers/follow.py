"""Brings metrics.jsonl to the trackers, while it grows and after it went back.

Promise: a tracker gets every whole line of the file, in order. One that can replace a step (TensorBoard) follows the file when
a run goes back to a checkpoint; the others get each step once, over all submissions: how far they are lies in
`run folder`/trackers/NAME.json, with the id of the run that goes on there. A tracker that fails or hangs is told of once,
in one line, and tried again with growing pauses; nothing else waits for it, except the end of the job, for END_SECONDS.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmsr_ray.observability.progress import size_and_time
from mmsr_ray.observability.trackers.mlflow import MlflowTracker
from mmsr_ray.observability.trackers.port import Tracker, flatten, settings_of
from mmsr_ray.observability.trackers.settings import TrackingConfig
from mmsr_ray.observability.trackers.tensorboard import TensorBoardTracker
from mmsr_ray.observability.trackers.wandb import WandbTracker

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
PAUSE_SECONDS = (5.0, 60.0)  # after the first failure in a row, and at most
END_SECONDS = 30.0


def open_trackers(names: Sequence[str], tracking: TrackingConfig, folder: Path) -> dict[str, Tracker]:
    """The trackers by name, TensorBoard among them. Raises TrackerError for one that cannot begin here; asks no server."""
    make: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoardTracker(folder),
        "wandb": lambda: WandbTracker(folder, tracking),
        "mlflow": lambda: MlflowTracker(tracking),
    }
    return {name: make[name]() for name in dict.fromkeys(["tensorboard", *names])}


@contextmanager
def following(
    trackers: Mapping[str, Tracker], folder: Path, *, name: str, config: Mapping[str, Any], end_seconds: float = END_SECONDS
) -> Iterator[None]:
    """Inside, what is appended to `folder`/metrics.jsonl reaches the trackers; at the end, what they still lack.

    `name` is the run's, `config` its resolved settings (nested).
    """
    settings = settings_of(config)
    followers = [Follower(key, tracker, folder, name, settings) for key, tracker in trackers.items()]
    for follower in followers:
        follower.begin()
    ok = False
    try:
        yield
        ok = True
    finally:
        for follower in followers:
            follower.end(ok=ok)
        for follower in followers:
            follower.wait(end_seconds)


@dataclass
class Place:
    """How far a tracker is."""

    run: str | None = None  # the id by which its service knows the run
    step: int = 0  # the last step it has


class Follower:
    """One tracker's thread."""

    def __init__(self, key: str, tracker: Tracker, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        self._key = key
        self._tracker = tracker
        self._metrics = folder / "metrics.jsonl"
        self._file = folder / "trackers" / f"{key}.json"
        self._name = name
        self._settings = settings
        self._place = Place(**json.loads(self._file.read_text())) if self._file.is_file() else Place()
        self._told = [hash(line) for line in whole_lines(self._metrics) if _step(line) <= self._place.step]
        self._looked_at: tuple[int, int] | None = None
        self._started = False
        self._failures = 0
        self._stop = threading.Event()
        self._ok = True
        self._thread = threading.Thread(target=self._run, name=f"tracker-{key}", daemon=True)  # a hanging call must not hold the job

    def begin(self) -> None:
        self._thread.start()

    def end(self, *, ok: bool) -> None:
        """Deliver what is there, once, and close. Does not wait."""
        self._ok = ok
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Until the tracker is closed, or `seconds` are over."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            logger.warning(
                "tracker %s has not finished within %g s: it has the records up to step %d", self._key, seconds, self._place.step
            )

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(self._pause())  # one more look after the end
            self._guarded(self._deliver)
        if self._started:
            self._guarded(lambda: self._tracker.close(ok=self._ok))

    def _pause(self) -> float:
        first, longest = PAUSE_SECONDS
        return min(first * 2 ** min(self._failures - 1, 16), longest) if self._failures else LOOK_SECONDS

    def _guarded(self, call: Callable[[], None]) -> None:
        """The boundary to foreign services: whatever they raise is said once and ends here."""
        try:
            call()
        except Exception as error:
            self._failures += 1
            if self._failures == 1:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                logger.warning(
                    "tracker %s fails (%s): the run goes on without it; its records are in %s and are sent when it answers again",
                    self._key,
                    reason[0][:300],
                    self._metrics.name,
                )
        else:
            if self._failures:
                logger.warning("tracker %s answers again", self._key)
            self._failures = 0

    def _deliver(self) -> None:
        now = size_and_time(self._metrics)
        if now == self._looked_at:
            return
        lines = whole_lines(self._metrics)
        first = common_prefix(self._told, lines)
        del self._told[first:]
        for line in lines[first:]:
            step = _step(line)
            if step > self._place.step or (step > 0 and self._tracker.supersedes):
                self._start()
                self._tracker.log(step, dict(flatten(json.loads(line))))
                self._keep(Place(self._place.run, step))
            self._told.append(hash(line))
        self._looked_at = now

    def _start(self) -> None:
        """Only once there is something to tell: a run that is submitted again when it is done opens nothing."""
        if not self._started:
            self._keep(Place(self._tracker.start(self._name, self._settings, self._place.run), self._place.step))
            self._started = True

    def _keep(self, place: Place) -> None:
        self._place = place
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(place)))
        partial.replace(self._file)


def whole_lines(path: Path) -> list[str]:
    """Lines of a file, without a last one that is still being written."""
    text = path.read_text() if path.is_file() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def common_prefix(told: Sequence[int], lines: Sequence[str]) -> int:
    """Number of leading lines whose hashes are the leading ones of `told`."""
    count = 0
    for known, line in zip(told, lines, strict=False):
        if known != hash(line):
            break
        count += 1
    return count


def _step(line: str) -> int:
    """Of a record, counted from 1; 0 for a line that a kill has torn."""
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        return 0
