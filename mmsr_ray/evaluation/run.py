"""Drives questions over runners, greedy, one answer a question.

Promise: every question ends once, whatever happens. One whose runner died or hung is asked again on another one; after
`attempts` it ends without a summary and counts as an infrastructure failure, never as a wrong answer. Nothing waits past
`deadline_seconds`: what is open then is a failure too.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from mmsr_ray.evaluation.metrics import measure
from mmsr_ray.evaluation.pool import RunnerPool
from mmsr_ray.rollout.bunches import Told
from mmsr_ray.tools.errors import BudgetSpent
from mmsr_ray.tools.tape import TapeMiss
from mmsr_ray.types import Sample, Trajectory, TrajectorySummary

logger = logging.getLogger(__name__)

WAIT_SECONDS = 0.5  # longest sleep between looks at the clock
LIST_QUESTIONS = 32  # in one call to a runner: enough to share its cost, few enough that the first begin while others are on their way
SLACK_SECONDS = 10.0  # beyond the time that a runner itself gives a question
FETCH_SECONDS = 60.0  # a bunch of trajectories comes out of the object store within this time


@dataclass(frozen=True, slots=True)
class Question:
    """What one runner is asked once. `benchmark` is the caller's own mark."""

    sample: Sample
    workflow: str
    benchmark: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """Where what a summary sums up lies: in a list, with those of the questions that ended at the same time."""

    bunch: ObjectRef
    place: int


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one question; `number` counts questions from 0 as they were given. `failure` says why no summary is there."""

    number: int
    question: Question
    summary: Any = None  # TrajectorySummary, or what the call gives in its place
    held: Held | None = None
    failure: str = ""


@dataclass(frozen=True)
class Call:
    """How a runner is asked: by a method that gives a summary, which says whether it is `out_of_money`, and what it sums up."""

    method: str
    arguments: Callable[[Question], tuple[Any, ...]]


GREEDILY = Call("evaluate_sample", lambda question: (question.sample, question.workflow))  # as evaluations ask


def fetch(held: Sequence[Held | None], timeout: float = FETCH_SECONDS) -> list[Any]:
    """What lies there; None where nothing does any more: its runner's node died just now."""
    lists: dict[ObjectRef, list[Any]] = {}
    found = []
    for one in held:
        if one is not None and one.bunch not in lists:
            try:
                lists[one.bunch] = ray.get(one.bunch, timeout=timeout)
            except RayError as error:
                logger.warning("the answers of one moment are lost: %s", _first_line(error))
                lists[one.bunch] = []
        found.append(lists[one.bunch][one.place] if one is not None and lists[one.bunch] else None)
    return found


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one question. Its trajectory is `held` only for the first `keep` questions; `failure` says why no summary is there."""

    uid: str
    summary: TrajectorySummary | None
    held: Held | None = None
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

    def kept(self) -> list[tuple[Sample, Trajectory]]:
        """(sample, trajectory) of the kept questions; one whose trajectory is lost is left out with a warning."""
        found = fetch([entry.held for entry in self.entries[: len(self.samples)]])
        return [(sample, trajectory) for sample, trajectory in zip(self.samples, found, strict=True) if trajectory is not None]


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
    """One list of questions on its way through a runner; `jobs` are those that have not ended, by their place in it."""

    runner: int
    answers: Any  # a generator of references, of a type that Ray exports without a stub
    jobs: dict[int, _Job]
    results: ObjectRef | None = None  # of a bunch whose summaries come next
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
            entries[ended.number] = Entry(sample.uid, ended.summary, ended.held if holds else None, ended.failure)
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
    call: Call = GREEDILY,
) -> Generator[list[Ended], None, None]:
    """Ask every question once over `runners` (SearchEnvRunner actors, or other `Bunches` with a `ping` and what `call` calls).

    Yields, again and again, the questions that ended since the last time, in any order. What the caller does with them holds
    up the next look, not the runners. `questions` may be a generator: at most `inflight_per_runner` per runner are in memory.
    `sample_seconds` bounds one attempt at one question, `deadline_seconds` the whole.
    Raises ValueError without runners, and BudgetSpent when the tools are out of money: half an evaluation is none; what had an
    answer by then has been yielded. Raises TapeMiss, with the question and the call, when a replay is asked for what was not recorded:
    asking again would not help. A runner that Ray restarts is used again once it answers `ping`; when all are dead for good, the questions that are
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
                run.fill(source)
                run.launch()  # before the caller takes its time with what ended: runners whose queues ran low would stand still
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
        self._flights: dict[Any, _Flight] = {}
        self._landed: list[Ended] = []
        self._count = 0
        self.ended = 0
        self.out_of_money = False

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._flights

    def fill(self, source: Iterator[Question]) -> None:
        """Take questions until the runners' hands are full."""
        missing = self._inflight * len(self.pool) - len(self._waiting) - sum(len(flight.jobs) for flight in self._flights.values())
        for question in islice(source, max(missing, 0)):
            self._waiting.append(_Job(self._count, question))
            self._count += 1

    def launch(self) -> None:
        """Send waiting questions to the least loaded runners that are up."""
        self.pool.poll()
        load = dict.fromkeys(self.pool.up, 0)
        for flight in self._flights.values():
            if flight.runner in load:
                load[flight.runner] += len(flight.jobs)
        lists: dict[int, list[_Job]] = defaultdict(list)
        while self._waiting and load:
            runner = min(load, key=lambda i: load[i])
            if load[runner] >= self._inflight:
                break
            lists[runner].append(self._waiting.popleft())
            load[runner] += 1
        for runner, jobs in lists.items():
            for start in range(0, len(jobs), LIST_QUESTIONS):
                self._send(runner, jobs[start : start + LIST_QUESTIONS])

    def _send(self, runner: int, jobs: list[_Job]) -> None:
        for job in jobs:
            job.attempts += 1
        calls = [self._call.arguments(job.question) for job in jobs]
        bunches: Any = self.pool[runner].bunches.options(num_returns="streaming")
        answers = bunches.remote(self._call.method, calls, self._sample_seconds)
        self._flights[answers] = _Flight(runner, answers, dict(enumerate(jobs)))

    def land(self) -> list[Ended]:
        """Wait a little, take what is there or overdue; returns the questions that ended."""
        self._landed = []
        if not self._flights:
            if self._waiting:
                time.sleep(WAIT_SECONDS)  # every runner is down
            return []
        ready, _ = self._wait(1, WAIT_SECONDS)
        while ready:
            for answers in ready:
                self._hear(self._flights[answers])
            ready, _ = self._wait(len(self._flights), 0)
        overdue = time.monotonic() - self._sample_seconds - SLACK_SECONDS
        for flight in [f for f in self._flights.values() if f.started < overdue]:
            self.pool.report_down(flight.runner)  # until it answers a ping: it hangs as a whole, or it would have told
            self._broke(flight, f"its runner is silent for {self._sample_seconds:.0f} s")
        self.ended += len(self._landed)
        return self._landed

    def _wait(self, count: int, seconds: float) -> tuple[list[Any], list[Any]]:
        """Flights of which the next part is there; not its bytes, which may be pictures that nobody asks for."""
        flights: list[Any] = list(self._flights)
        return ray.wait(flights, num_returns=count, timeout=seconds, fetch_local=False) if flights else ([], [])

    def abandoned(self, source: Iterator[Question], why: str) -> list[Ended]:
        """Everything open fails, the questions never read included."""
        jobs = [*self._waiting, *(job for flight in self._flights.values() for job in flight.jobs.values())]
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
            ray.cancel(flight.answers)
        self._waiting.clear()
        self._flights.clear()

    def _hear(self, flight: _Flight) -> None:
        """Take the next part of a flight's answers: results, or the summaries of the results before it, or the end."""
        try:
            part = next(flight.answers, None)
            if part is None:
                if flight.results is not None:
                    ray.get(flight.results, timeout=FETCH_SECONDS)  # raises what ended it before its time
                self._broke(flight, "its runner told no more")  # if anything is left
            elif flight.results is None:
                flight.results = part
            else:
                self._take(flight, ray.get(part, timeout=FETCH_SECONDS), flight.results)
                flight.results = None
        except RayActorError as error:
            self.pool.report_down(flight.runner)
            self._broke(flight, f"its runner died: {_first_line(error)}")
        except RayError as error:
            self._broke(flight, _first_line(error))

    def _take(self, flight: _Flight, bunch: list[Told], results: ObjectRef) -> None:
        for place, told in enumerate(bunch):
            job = flight.jobs.pop(told.place)
            if told.not_on_tape:
                raise TapeMiss(f"question {job.uid}: {told.failure}")
            if told.failure:
                self._again(job, told.failure)
            else:
                self.out_of_money = self.out_of_money or told.summary.out_of_money
                self._landed.append(Ended(job.number, job.question, told.summary, Held(results, place)))

    def _broke(self, flight: _Flight, why: str) -> None:
        """What has not ended of a flight is asked again."""
        del self._flights[flight.answers]
        if flight.jobs:
            ray.cancel(flight.answers)
        for job in flight.jobs.values():
            self._again(job, why)

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
