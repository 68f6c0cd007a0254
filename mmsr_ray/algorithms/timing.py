"""Where the time of a training step goes: waiting for its batch, learning, bringing the weights to the runners.

Invariant: `generate + tools + idle + learn + sync == total`. The wait for the batch is split by what the runners did
meanwhile. They are asked at the ends of each phase, nobody waits for their answers before the step is over, and a runner
that does not answer in time costs the step `ANSWER_SECONDS` at most.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from mmsr_ray.rollout.activity import Reading, State, split

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 1.0  # for all runners together; they answer within milliseconds, and were asked long before


@dataclass(frozen=True, slots=True)
class Times:
    """Monotonic seconds at which the phases of a step ended."""

    began: float
    collected: float
    learned: float
    synced: float


Questions = dict[int, ObjectRef]  # runner -> its reading, on its way


class StepClock:
    """Made when a step begins; call `collected`, `learned` and `synced` as its phases end, then `record`."""

    def __init__(self, ask: Callable[[], Questions], runners: Sequence[int], now: Callable[[], float] = time.monotonic) -> None:
        """`ask` sends every healthy runner the question and returns at once."""
        self._ask, self._runners, self._now = ask, list(runners), now
        self._marks = [now()]
        self._questions = [ask()]

    def collected(self) -> None:
        self._mark()

    def learned(self) -> None:
        self._mark()

    def synced(self) -> None:
        self._marks.append(self._now())

    def _mark(self) -> None:
        self._marks.append(self._now())
        self._questions.append(self._ask())

    def record(self) -> tuple[dict[str, float], float]:
        """Seconds of the step by part, and the share of the learner's time in which the runners were rolling out."""
        times = Times(*self._marks)
        readings = answers(self._questions)
        return decompose(times, self._runners, readings), overlap(times, self._runners, readings)


def decompose(times: Times, runners: Sequence[int], readings: Sequence[Mapping[int, Reading]]) -> dict[str, float]:
    """`readings` were taken at the step's beginning, when its batch was there, and after learning.

    `rollout` is the whole wait for the batch; what a runner spent in it on loading weights belongs to `sync`.
    """
    waiting = split(times.collected - times.began, runners, readings[0], readings[1])
    parts = {
        "generate": waiting[State.GENERATE],
        "tools": waiting[State.TOOLS],
        "idle": waiting[State.IDLE],
        "learn": times.learned - times.collected,
        "sync": times.synced - times.learned + waiting[State.SYNC],
    }
    return {"rollout": times.collected - times.began, **parts, "total": times.synced - times.began}


def overlap(times: Times, runners: Sequence[int], readings: Sequence[Mapping[int, Reading]]) -> float:
    """Share of the time of learning in which a runner, on average, generated or waited for tools."""
    seconds = times.learned - times.collected
    meanwhile = split(seconds, runners, readings[1], readings[2])
    return (meanwhile[State.GENERATE] + meanwhile[State.TOOLS]) / seconds if seconds > 0 else 0.0


def answers(questions: Sequence[Questions]) -> list[dict[int, Reading]]:
    """Those that have come, after `ANSWER_SECONDS` at most."""
    sent = [ref for asked in questions for ref in asked.values()]
    come = set(ray.wait(sent, num_returns=len(sent), timeout=ANSWER_SECONDS)[0]) if sent else set()
    return [{runner: reading for runner, ref in asked.items() if ref in come and (reading := _answer(runner, ref))} for asked in questions]


def _answer(runner: int, ref: ObjectRef) -> Reading | None:
    try:
        return ray.get(ref)
    except RayError as error:
        logger.info("runner %d did not say what it did: %s", runner, type(error).__name__)
        return None
