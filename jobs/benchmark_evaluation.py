"""The suite `evaluation`: direct answers through the whole path of jobs/evaluate.py beside bare vLLM on the same prompts.

Promise: both sides do the same work, greedy, in the same process count: one engine. Ours goes through Ray Data, a runner actor, the
episode, and an answer on disk; the engine's start is left out on both sides, and the stream is open when the clock starts, as
it is when engines come up. The untrained policy of Atlas hardly ever ends an answer, so that nearly all have the full length; a trained one
answers in two or three tokens. Short answers are measured too: there it is the requests that are compared, and of a model of a
million parameters a request costs the engine less than the way to it. So a larger model is measured, too, with fewer questions.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle

from jobs.benchmark_rows import row
from jobs.benchmark_weights import larger
from jobs.engines import answering
from jobs.evaluate_model import ask_and_keep
from mmsr_ray.config import Config
from mmsr_ray.data.reader import read_index, read_samples
from mmsr_ray.evaluation.answers import FILE, Answers
from mmsr_ray.evaluation.questions import QuestionSet
from mmsr_ray.rollout.measure import Rate, bare_rate

ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Work:
    """What both sides do: direct answers of `tokens` tokens, a picture each."""

    model: str  # in words
    questions: int
    tokens: int


TINY = (Work("a model of a million parameters", 512, 64), Work("a model of a million parameters", 512, 8))
HALF = Work("a model of the 0.5B shape, random weights, bf16", 64, 32)


def evaluation(config: Config) -> list[dict[str, Any]]:
    """Tokens per second of direct answers to questions with a picture each: long ones, short ones, and those of a larger model."""
    rows = [_against_bare(config, work) for work in TINY]
    with larger(config, Path(config.model.path)) as large:
        return rows if large is None else [*rows, _against_bare(large, HALF, large.rollout.threads)]


def _against_bare(config: Config, work: Work, threads: int = 0) -> dict[str, Any]:
    asked = replace(config.evaluation, workflows=["direct"], questions=work.questions)
    direct = replace(config, agent=replace(config.agent, max_turn_tokens=work.tokens), evaluation=asked)
    samples = read_samples(direct.data.train, direct.data, questions=work.questions, seed=direct.run.seed)
    bare = bare_rate(direct, samples, 1, ROUNDS, direct=True, threads=threads)
    with answering(direct) as runners:
        ours = _rate(direct, runners)
    name = f"tokens per second of an evaluation against bare vLLM, {work.model}, {work.questions} direct questions with a picture"
    return row(f"{name}, answers of {work.tokens} tokens", ours.per_second, "tokens/s",
               "vllm.LLM.generate on the same prompts", bare.per_second, "evaluation")  # fmt: skip


def _rate(config: Config, runners: Sequence[ActorHandle]) -> Rate:
    """Median by speed of several rounds; one round more goes first, unmeasured."""
    rates = [_round(config, runners) for _ in range(ROUNDS + 1)][1:]
    middle = statistics.median_low([rate.per_second for rate in rates])
    return next(rate for rate in rates if rate.per_second == middle)


def _round(config: Config, runners: Sequence[ActorHandle]) -> Rate:
    rows = read_index(config.data.train, config.data).rows
    count = config.evaluation.questions
    questions = QuestionSet("train", config.data.train, rows, config.data, count, config.run.seed)
    with tempfile.TemporaryDirectory() as folder, Answers(Path(folder) / FILE, {}) as answers:
        stream = questions.open_questions({"direct": ()})
        first = next(stream)
        began = time.perf_counter()
        lost = ask_and_keep(config, runners, chain([first], stream), answers)
        seconds = time.perf_counter() - began
        summaries = answers.summaries("train", "direct").values()
    if any(lost.values()) or len(summaries) < count:
        raise RuntimeError(f"{len(summaries)} of {count} questions have an answer: a measurement needs all of them")
    return Rate(sum(summary.sampled_tokens for summary in summaries), seconds)
