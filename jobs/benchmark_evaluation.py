"""The suite `evaluation`: direct answers through the whole path of jobs/evaluate.py beside bare vLLM on the same prompts.

Promise: both sides do the same work, greedy, in the same process count: one engine. Ours goes through Ray Data, a runner actor, the
episode, and an answer on disk; the engine's start is left out on both sides, and the stream is open when the clock starts, as
it is when engines come up. The untrained policy of Atlas hardly ever ends an answer, so that nearly all have the full length; a trained one
answers in two or three tokens. Short answers are measured too: there it is the requests that are compared, and of a model of a
million parameters a request costs the engine less than the way to it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle

from jobs.benchmark_rows import row
from jobs.engines import answering
from jobs.evaluate_model import ask_and_keep
from mmsr_ray.config import Config
from mmsr_ray.data.reader import read_index, read_samples
from mmsr_ray.evaluation.answers import FILE, Answers
from mmsr_ray.evaluation.questions import QuestionSet
from mmsr_ray.rollout.measure import Rate, bare_rate

QUESTIONS = 512
ANSWER_TOKENS = (64, 8)
ROUNDS = 3


def evaluation(config: Config) -> list[dict[str, Any]]:
    """Tokens per second of direct answers to questions with a picture each: long ones, and short ones as direct answers are."""
    return [_against_bare(config, tokens) for tokens in ANSWER_TOKENS]


def _against_bare(config: Config, tokens: int) -> dict[str, Any]:
    agent, asked = replace(config.agent, max_turn_tokens=tokens), replace(config.evaluation, workflows=["direct"], questions=QUESTIONS)
    direct = replace(config, agent=agent, evaluation=asked)
    samples = read_samples(direct.data.train, direct.data, questions=QUESTIONS, seed=direct.run.seed)
    bare = bare_rate(direct, samples, 1, ROUNDS, direct=True)
    with answering(direct) as runners:
        ours = _rate(direct, runners)
    return row(
        f"tokens per second of an evaluation against bare vLLM, {QUESTIONS} direct questions with a picture, answers of {tokens} tokens",
        ours.per_second, "tokens/s", "vllm.LLM.generate on the same prompts", bare.per_second, "evaluation",
    )  # fmt: skip


def _rate(config: Config, runners: Sequence[ActorHandle]) -> Rate:
    """Median by speed of several rounds; one round more goes first, unmeasured."""
    rates = [_round(config, runners) for _ in range(ROUNDS + 1)][1:]
    middle = statistics.median_low([rate.per_second for rate in rates])
    return next(rate for rate in rates if rate.per_second == middle)


def _round(config: Config, runners: Sequence[ActorHandle]) -> Rate:
    rows = read_index(config.data.train, config.data).rows
    questions = QuestionSet("train", config.data.train, rows, config.data, QUESTIONS, config.run.seed)
    with tempfile.TemporaryDirectory() as folder, Answers(Path(folder) / FILE, {}) as answers:
        stream = questions.open_questions({"direct": ()})
        first = next(stream)
        began = time.perf_counter()
        lost = ask_and_keep(config, runners, chain([first], stream), answers)
        seconds = time.perf_counter() - began
        summaries = answers.summaries("train", "direct").values()
    if any(lost.values()) or len(summaries) < QUESTIONS:
        raise RuntimeError(f"{len(summaries)} of {QUESTIONS} questions have an answer: a measurement needs all of them")
    return Rate(sum(summary.sampled_tokens for summary in summaries), seconds)
