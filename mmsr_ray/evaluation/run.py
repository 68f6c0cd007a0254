"""Drives a set of questions over rollout runners for one workflow, greedy, one answer a question.

Promise: one entry a question, in the order of the questions, whatever happens. A question whose runner died or hung is
asked again on another one; after `attempts` it is an entry without a summary and counts as an infrastructure failure,
never as a wrong answer. Nothing waits past `deadline_seconds`: what is open then is a failure too.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from mmsr_ray.evaluation.metrics import measure
from mmsr_ray.evaluation.pool import RunnerPool
from mmsr_ray.tools.errors import BudgetSpent
from mmsr_ray.tools.tape import TapeMiss
from mmsr_ray.types import Sample, Trajectory, TrajectorySummary

logger = logging.getLogger(__name__)

WAIT_SECONDS = 0.5  # longest sleep between looks at the clock


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one question. `trajectory` is held only for the first `keep` questions; `failure` says why no summary is there."""

    uid: str
    summary: TrajectorySummary | None
    trajectory: ObjectRef | None = None
    failure: str = ""


@dataclass(frozen=True)
class Evaluation:
    """Entries in the order of the questions; `samples` are the first `keep` questions, for whoever writes trajectories."""

    workflow: str
    entries: list[Entry]
    samples: list[Sample]
    seconds: float

    @property
    def summaries(self) -> list[TrajectorySummary]:
        return [entry.summary for entry in self.entries if entry.summary is not None]

    @property
    def failures(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.summary is None]

    def row(self, *, name: str, split: str, search_limit: int) -> dict[str, Any]:
        """The row of summary.json, see `metrics.measure`."""
        return measure(self.summaries, name=name, split=split, search_limit=search_limit, infra_errors=len(self.failures))

    def kept(self, timeout: float = 60.0) -> list[tuple[Sample, Trajectory]]:
        """(sample, trajectory) of the kept questions; one whose trajectory is lost is left out with a warning."""
        pairs = []
        for sample, entry in zip(self.samples, self.entries, strict=False):
            if entry.trajectory is None:
                continue
            try:
                pairs.append((sample, ray.get(entry.trajectory, timeout=timeout)))
            except RayError as error:
                logger.warning("the trajectory of %s is lost: %s", sample.uid, _first_line(error))
        return pairs


@dataclass
class _Job:
    number: int
    sample: Sample
    attempts: int = 0


@dataclass
class _Flight:
    job: _Job
    runner: int
    summary: ObjectRef
    trajectory: ObjectRef
    started: float = field(default_factory=time.monotonic)


def evaluate(
    runners: Sequence[ActorHandle],
    samples: Iterable[Sample],
    workflow: str,
    *,
    inflight_per_runner: int,
    sample_seconds: float,
    deadline_seconds: float,
    attempts: int = 3,
    keep: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Ask every question once over `runners` (SearchEnvRunner actors).

    `samples` may be a generator: at most `inflight_per_runner` per runner are in memory. `sample_seconds` bounds one attempt at one
    question, `deadline_seconds` the whole; `on_progress` is called with the number of questions done.
    Raises ValueError without runners, and BudgetSpent when the tools are out of money: half an evaluation is none. A runner that Ray restarts is used again once it answers `ping`; when all are dead for
    good, the questions that are left fail at once.
    """
    if not runners:
        raise ValueError("an evaluation needs at least one runner")
    run = _Run(RunnerPool(runners), workflow, inflight_per_runner, sample_seconds, attempts, keep)
    started = time.monotonic()
    source = iter(samples)
    while True:
        run.fill(source)
        if run.idle:
            break
        if time.monotonic() - started > deadline_seconds:
            run.abandon(source, f"not done within the evaluation's {deadline_seconds:.0f} s")
        elif run.pool.all_dead:
            run.abandon(source, "every rollout runner is dead")
        run.launch()
        landed = run.land()
        if run.out_of_money:
            run.abandon(iter(()), "the money of the tools is spent")
            raise BudgetSpent(f"the tools refuse searches that tools.budget_usd does not pay for, at question {run.done} of {workflow}")
        if landed and on_progress is not None:
            on_progress(run.done)
    return Evaluation(workflow, run.entries(), run.samples, time.monotonic() - started)


class _Run:
    """State of one evaluation: waiting jobs, flights, and entries by number."""

    def __init__(self, pool: RunnerPool, workflow: str, inflight: int, sample_seconds: float, attempts: int, keep: int) -> None:
        self.pool = pool
        self._workflow = workflow
        self._inflight = inflight
        self._sample_seconds = sample_seconds
        self._attempts = attempts
        self._keep = keep
        self._waiting: deque[_Job] = deque()
        self._flights: dict[ObjectRef, _Flight] = {}
        self._entries: dict[int, Entry] = {}
        self._count = 0
        self.samples: list[Sample] = []
        self.out_of_money = False

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._flights

    @property
    def done(self) -> int:
        return len(self._entries)

    def entries(self) -> list[Entry]:
        return [self._entries[number] for number in range(self._count)]

    def fill(self, source: Iterator[Sample]) -> None:
        """Take questions until the runners' hands are full."""
        while len(self._waiting) + len(self._flights) < self._inflight * len(self.pool):
            sample = next(source, None)
            if sample is None:
                return
            if self._count < self._keep:
                self.samples.append(sample)
            self._waiting.append(_Job(self._count, sample))
            self._count += 1

    def launch(self) -> None:
        """Send waiting questions to the least loaded runners that are up."""
        self.pool.poll()
        load = dict.fromkeys(self.pool.up, 0)
        for flight in self._flights.values():
            if flight.runner in load:
                load[flight.runner] += 1
        while self._waiting and load:
            runner = min(load, key=lambda i: load[i])
            if load[runner] >= self._inflight:
                return
            job = self._waiting.popleft()
            job.attempts += 1
            summary, trajectory = cast(
                list[ObjectRef], self.pool[runner].evaluate_sample.options(num_returns=2).remote(job.sample, self._workflow)
            )
            self._flights[summary] = _Flight(job, runner, summary, trajectory)
            load[runner] += 1

    def land(self) -> int:
        """Wait a little, take what is ready or overdue; returns how many questions ended."""
        before = self.done
        if not self._flights:
            if self._waiting:
                time.sleep(WAIT_SECONDS)  # every runner is down
            return 0
        refs = list(self._flights)
        ready, _ = ray.wait(refs, num_returns=1, timeout=WAIT_SECONDS)
        if ready and len(refs) > 1:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            self._finish(self._flights.pop(ref))
        overdue = time.monotonic() - self._sample_seconds
        for flight in [f for f in self._flights.values() if f.started < overdue]:
            del self._flights[flight.summary]
            ray.cancel(flight.summary)
            self.pool.report_down(flight.runner)  # until it answers a ping: it may hang as a whole
            self._again(flight.job, f"no answer within {self._sample_seconds:.0f} s")
        return self.done - before

    def abandon(self, source: Iterator[Sample], why: str) -> None:
        """Past the deadline: everything open fails, the questions never read included."""
        for flight in self._flights.values():
            ray.cancel(flight.summary)
        jobs = [*self._waiting, *(flight.job for flight in self._flights.values())]
        self._waiting.clear()
        self._flights.clear()
        for sample in source:
            jobs.append(_Job(self._count, sample))
            self._count += 1
        for job in jobs:
            self._entries[job.number] = Entry(job.sample.uid, None, failure=why)
        if jobs:
            logger.error("%d questions: %s", len(jobs), why)

    def _finish(self, flight: _Flight) -> None:
        number = flight.job.number
        try:
            summary = ray.get(flight.summary)
        except RayActorError as error:
            self.pool.report_down(flight.runner)
            self._again(flight.job, f"its runner died: {_first_line(error)}")
        except TapeMiss as error:  # no failure of this question: the replay is another run than the one recorded
            raise TapeMiss(f"question {flight.job.sample.uid}: {error.args[0]}") from None
        except RayError as error:
            self._again(flight.job, _first_line(error))
        else:
            self.out_of_money = self.out_of_money or summary.out_of_money
            self._entries[number] = Entry(flight.job.sample.uid, summary, flight.trajectory if number < self._keep else None)

    def _again(self, job: _Job, why: str) -> None:
        if job.attempts < self._attempts:
            logger.warning("question %s is asked again: %s", job.sample.uid, why)
            self._waiting.appendleft(job)
        else:
            logger.error("question %s failed %d times, last: %s", job.sample.uid, job.attempts, why)
            self._entries[job.number] = Entry(job.sample.uid, None, failure=why)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
