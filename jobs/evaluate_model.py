"""One model over benchmarks and workflows: the stage that jobs share. Answers go to disk as they are given.

Promise: a folder holds one model's answers. Called again with it, after a kill or an end of whatever kind, only questions
without an answer are asked, and the rows are those of an evaluation that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle

from jobs.engines import answering, queue_length
from mmsr_ray.config import Config, to_dict
from mmsr_ray.evaluation.answers import FILE, Answer, Answers
from mmsr_ray.evaluation.metrics import measure
from mmsr_ray.evaluation.questions import QuestionSet, question_sets
from mmsr_ray.evaluation.rows import GRACE_SECONDS
from mmsr_ray.evaluation.run import Ended, Question, ask, fetch
from mmsr_ray.evaluation.trajectories import TrajectoryRow, trajectory_row, write_rows
from mmsr_ray.types import Outcome

logger = logging.getLogger(__name__)

TELL_SECONDS = 10.0

Lost = dict[tuple[str, str], set[str]]  # (benchmark, workflow) -> uids of questions that ended without an answer


def evaluate_model(config: Config, folder: Path, label: str) -> list[dict[str, Any]]:
    """Ask the model of `config` every question of `evaluation.benchmarks` in every workflow, unless `folder` holds the answer.

    Needs a running Ray and the tools of the run (`start_tools`); engines are started here, and only if there is something to
    ask. Returns one row for each benchmark and workflow (`metrics.measure`, with `model`=`label`, `benchmark`, `workflow`). Leaves
    answers.sqlite and trajectories/<benchmark>-<workflow>.parquet in `folder`.

    Raises ConfigError where `folder` holds answers under another config, DataError, AnswersError, NoRoom, NoEngine, and
    BudgetSpent when the money of the tools ends it; what was answered by then is kept.
    """
    benchmarks = question_sets(config)
    with Answers(folder / FILE, to_dict(config) | {"model_files": model_files(config.model.path)}) as answers:
        for benchmark in benchmarks:
            answers.belongs_to(benchmark.name, benchmark.digest)
        lost = _ask_what_is_open(config, benchmarks, answers)
        rows = []
        for benchmark in benchmarks:
            for workflow in config.evaluation.workflows:
                rows.append(_row(config, answers, benchmark, workflow, label, lost.get((benchmark.name, workflow), set())))
                file = folder / "trajectories" / f"{benchmark.name}-{workflow}.parquet"
                write_rows(file, _trajectories(answers, benchmark, workflow))
    return rows


def model_files(path: str) -> str:
    """Changes when the files of a model folder do, by their names, sizes and times; "" for a hub id."""
    files = sorted(file for file in Path(path).rglob("*") if file.is_file()) if Path(path).is_dir() else []
    marks = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:12] if files else ""


def _ask_what_is_open(config: Config, benchmarks: Sequence[QuestionSet], answers: Answers) -> Lost:
    """All questions as one stream, so that engines never run dry between benchmarks. Returns what stays without an answer."""
    done = {b.name: {w: answers.answered(b.name, w) for w in config.evaluation.workflows} for b in benchmarks}
    before = sum(len(uids) for workflows in done.values() for uids in workflows.values())
    stream = chain.from_iterable(benchmark.open_questions(done[benchmark.name]) for benchmark in benchmarks)
    first = next(stream, None)
    if first is None:
        logger.info("all %d answers are there already", before)
        return {}
    with answering(config) as runners:
        logger.info("%d engines up, %d answers are there already", len(runners), before)
        return ask_and_keep(config, runners, chain([first], stream), answers, len(benchmarks), before, _size(config, benchmarks))


def ask_and_keep(
    config: Config,
    runners: Sequence[ActorHandle],
    questions: Iterable[Question],
    answers: Answers,
    benchmarks: int = 1,
    before: int = 0,
    total: int = 0,
) -> Lost:
    """Questions of so many benchmarks; answers go to disk as they come. `before` of `total` are there already, for the log."""
    ended = ask(
        runners,
        questions,
        inflight_per_runner=queue_length(config),
        sample_seconds=(config.rollout.infra_retries + 1) * config.agent.deadline_seconds + GRACE_SECONDS,
        deadline_seconds=config.evaluation.deadline_seconds * benchmarks * len(config.evaluation.workflows),
    )
    return _keep(ended, answers, before, total)


def _size(config: Config, benchmarks: Sequence[QuestionSet]) -> int:
    """Questions of all benchmarks and workflows, as long as no picture is bad."""
    return len(config.evaluation.workflows) * sum(min(b.limit or len(b.rows), len(b.rows)) for b in benchmarks)


def _keep(landings: Iterable[list[Ended]], answers: Answers, before: int, total: int) -> Lost:
    lost: Lost = defaultdict(set)
    count, told = before, time.monotonic()
    for landed in landings:
        given = list(_answers(landed))
        answers.add(given)
        for ended in landed:
            lost[ended.question.benchmark, ended.question.workflow].add(ended.question.sample.uid)
        for answer in given:
            if answer.summary.outcome is not Outcome.INFRA_ERROR:
                lost[answer.benchmark, answer.workflow].discard(answer.summary.uid)
                count += 1
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            logger.info("%d of %d answers", count, total)
    return lost


def _answers(landed: Iterable[Ended]) -> Iterator[Answer]:
    answered = [ended for ended in landed if ended.held is not None]
    for ended, trajectory in zip(answered, fetch([ended.held for ended in answered]), strict=True):
        if trajectory is None:  # without its trajectory an answer is none
            continue
        question = ended.question
        row = trajectory_row(question.sample, trajectory, split=question.benchmark)
        yield Answer(question.benchmark, question.workflow, ended.summary, row)


def _row(config: Config, answers: Answers, benchmark: QuestionSet, workflow: str, label: str, lost: set[str]) -> dict[str, Any]:
    summaries = answers.summaries(benchmark.name, workflow)
    row = measure(
        list(summaries.values()),
        name=f"{label}, {workflow}",
        split=benchmark.name,
        search_limit=config.agent.search_limit,
        infra_errors=len(lost - summaries.keys()),
    )
    return row | {"model": label, "benchmark": benchmark.name, "workflow": workflow}


def _trajectories(answers: Answers, benchmark: QuestionSet, workflow: str) -> Iterator[TrajectoryRow]:
    for sample in benchmark.samples(answers.summaries(benchmark.name, workflow).keys()):
        yield answers.row(benchmark.name, workflow, sample.uid) | {"picture": sample.image}
