"""Drives questions over runners, greedy, one answer a question.

Promise: every question ends once, whatever happens. One whose runner died or hung is asked again on another one; after
`attempts` it ends without a summary and counts as an infrastructure failure, never as a wrong answer. Nothing waits past
`deadline_seconds`: what is open then is a failure too.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
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
class Question:
    """What one runner is asked once. `benchmark` is the caller's own mark."""

    sample: Sample
    workflow: str
    benchmark: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one question; `number` counts questions from 0 as they were given. `failure` says why no summary is there."""

    number: int
    question: Question
    summary: Any = None  # TrajectorySummary, or what the call gives in its place
    trajectory: ObjectRef | None = None
    failure: str = ""


Call = Callable[[ActorHandle, Question], list[ObjectRef]]
"""How a runner is asked: two references, to a summary that says whether it is `out_of_money`, and to what it sums up."""


def greedily(runner: ActorHandle, question: Question) -> list[ObjectRef]:
    """The `Call` of evaluations."""
    return cast(list[ObjectRef], runner.evaluate_sample.options(num_returns=2).remote(question.sample, question.workflow))


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
    question: Question
    attempts: int = 0

    @property
    def uid(self) -> str:
        return self.question.sample.uid


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
) -> Evaluation:
    """Ask every sample once in one workflow, as `ask` does it, and keep the trajectories of the first `keep`."""
    started = time.monotonic()
    entries: dict[int, Entry] = {}
    kept: dict[int, Sample] = {}
    for landed in ask(
        runners,
        (Question(sample, workflow) for sample in samples),
        inflight_per_runner=inflight_per_runner,
        sample_seconds=sample_seconds,
        deadline_seconds=deadline_seconds,
        attempts=attempts,
    ):
        for ended in landed:
            sample, holds = ended.question.sample, ended.number < keep
            entries[ended.number] = Entry(sample.uid, ended.summary, ended.trajectory if holds else None, ended.failure)
            if holds:
                kept[ended.number] = sample
    return Evaluation(
        workflow, [entries[number] for number in sorted(entries)], [kept[number] for number in sorted(kept)], time.monotonic() - started
    )


def ask(
    runners: Sequence[ActorHandle],
    questions: Iterable[Question],
    *,
    inflight_per_runner: int,
    sample_seconds: float,
    deadline_seconds: float,
    attempts: int = 3,
    call: Call = greedily,
) -> Generator[list[Ended], None, None]:
    """Ask every question once over `runners` (SearchEnvRunner actors, or others with their `ping` and what `call` calls).

    Yields, again and again, the questions that ended since the last time, in any order. What the caller does with them holds
    up the next look, not the runners. `questions` may be a generator: at most `inflight_per_runner` per runner are in memory.
    `sample_seconds` bounds one attempt at one question, `deadline_seconds` the whole.
    Raises ValueError without runners, and BudgetSpent when the tools are out of money: half an evaluation is none; what had an
    answer by then has been yielded. A runner that Ray restarts is used again once it answers `ping`; when all are dead for good, the questions that are
    left fail at once.
    """
    if not runners:
        raise ValueError("an evaluation needs at least one runner")
    run = _Run(RunnerPool(runners), call, inflight_per_runner, sample_seconds, attempts)
    started = time.monotonic()
    source = iter(questions)
    try:
        while True:
            run.fill(source)
            if run.idle:
                return
            if time.monotonic() - started > deadline_seconds:
                yield run.abandoned(source, f"not done within the evaluation's {deadline_seconds:.0f} s")
                return
            if run.pool.all_dead:
                yield run.abandoned(source, "every rollout runner is dead")
                return
            run.launch()
            if landed := run.land():
                yield landed
            if run.out_of_money:
                raise BudgetSpent(f"the tools refuse searches that tools.budget_usd does not pay for, after {run.ended} questions")
    finally:
        run.cancel()


class _Run:
    """State of one evaluation: waiting jobs and flights."""

    def __init__(self, pool: RunnerPool, call: Call, inflight: int, sample_seconds: float, attempts: int) -> None:
        self.pool = pool
        self._call = call
        self._inflight = inflight
        self._sample_seconds = sample_seconds
        self._attempts = attempts
        self._waiting: deque[_Job] = deque()
        self._flights: dict[ObjectRef, _Flight] = {}
        self._landed: list[Ended] = []
        self._count = 0
        self.ended = 0
        self.out_of_money = False

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._flights

    def fill(self, source: Iterator[Question]) -> None:
        """Take questions until the runners' hands are full."""
        while len(self._waiting) + len(self._flights) < self._inflight * len(self.pool):
            question = next(source, None)
            if question is None:
                return
            self._waiting.append(_Job(self._count, question))
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
            summary, trajectory = self._call(self.pool[runner], job.question)
            self._flights[summary] = _Flight(job, runner, summary, trajectory)
            load[runner] += 1

    def land(self) -> list[Ended]:
        """Wait a little, take what is ready or overdue; returns the questions that ended."""
        self._landed = []
        if not self._flights:
            if self._waiting:
                time.sleep(WAIT_SECONDS)  # every runner is down
            return []
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
        self.ended += len(self._landed)
        return self._landed

    def abandoned(self, source: Iterator[Question], why: str) -> list[Ended]:
        """Everything open fails, the questions never read included."""
        jobs = [*self._waiting, *(flight.job for flight in self._flights.values())]
        self.cancel()
        ended = [Ended(job.number, job.question, failure=why) for job in jobs]
        for number, question in enumerate(source, start=self._count):
            ended.append(Ended(number, replace(question, sample=replace(question.sample, image=b"")), failure=why))
        if ended:
            logger.error("%d questions: %s", len(ended), why)
        return ended

    def cancel(self) -> None:
        """Leave everything open as it is: nobody waits for it any more."""
        for flight in self._flights.values():
            ray.cancel(flight.summary)
        self._waiting.clear()
        self._flights.clear()

    def _finish(self, flight: _Flight) -> None:
        job = flight.job
        try:
            summary = ray.get(flight.summary)
        except RayActorError as error:
            self.pool.report_down(flight.runner)
            self._again(job, f"its runner died: {_first_line(error)}")
        except TapeMiss as error:  # no failure of this question: the replay is another run than the one recorded
            raise TapeMiss(f"question {job.uid}: {error.args[0]}") from None
        except RayError as error:
            self._again(job, _first_line(error))
        else:
            self.out_of_money = self.out_of_money or summary.out_of_money
            self._landed.append(Ended(job.number, job.question, summary, flight.trajectory))

    def _again(self, job: _Job, why: str) -> None:
        if job.attempts < self._attempts:
            logger.warning("question %s is asked again: %s", job.uid, why)
            self._waiting.appendleft(job)
        else:
            logger.error("question %s failed %d times, last: %s", job.uid, job.attempts, why)
            self._landed.append(Ended(job.number, job.question, failure=why))


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
