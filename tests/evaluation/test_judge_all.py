"""Evaluation by judge, over real HTTP: the judge decides alone, the rules are told beside it, prose is no verdict."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.evaluation.metrics import measure
from mmsr_ray.rollout.activity import ActivityClock
from mmsr_ray.rollout.env_runner import SearchEnvRunner
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.types import Outcome, Sample, Sampling, Trajectory, TrajectorySummary
from tests.evaluation.test_trajectories import TOKENS
from tests.rewards.judge_server import JudgeServer
from tests.rewards.test_judge import PARAPHRASE, PNG, WRONG, settings
from tests.rewards.test_score import IMAGE, RIGHT, SAMPLE, TEXT, trajectory

SAID = {"exact": RIGHT, "paraphrase": PARAPHRASE, "wrong": WRONG, "silent": TEXT}


class Scripted(SearchEnvRunner):
    """A runner whose episodes are written down: everything after the episode is the real thing."""

    def __init__(self, config: Config, tools: LocalTools) -> None:
        self._settings, self._judge, self._counts, self._activity = config, tools, Counter(), ActivityClock()

    async def ready(self) -> None:
        pass

    async def _exit_if_dead(self) -> None:
        pass

    async def _episode(self, sample: Sample, index: int, workflow: str, sampling: Sampling) -> Trajectory:
        texts = [IMAGE, TEXT, TEXT] if sample.uid == "silent" else [SAID[sample.uid]]
        return replace(trajectory(*texts), uid=sample.uid, tokens=TOKENS)


async def evaluated(config: Config, *uids: str) -> list[TrajectorySummary]:
    async with LocalTools(config) as tools:
        runner = Scripted(config, tools)
        samples = [replace(SAMPLE, uid=uid, image=PNG) for uid in uids]
        ended = await asyncio.gather(*(runner.evaluate_sample(sample, "on_demand") for sample in samples))
    return [summary for summary, _ in ended]


def row(summaries: list[TrajectorySummary]) -> dict[str, Any]:
    return measure(summaries, name="n", split="s", search_limit=2)


async def test_the_judge_is_asked_about_every_answer_and_decides_alone(judge: JudgeServer) -> None:
    config = settings(judge)
    by_rule = row(await evaluated(config, "exact", "wrong"))
    assert (len(judge.requests), by_rule["accuracy"], by_rule["judge"]["judged"]) == (1, 0.5, 1)
    config.evaluation.judge_all = True
    config.reward.judge_sees_picture = True
    found = row(await evaluated(config, *SAID))
    assert len(judge.requests) == 1 + 3, "nothing was answered, so there is nothing to judge"
    assert all(request["messages"][1]["content"][0]["type"] == "image_url" for request in judge.requests[1:])
    assert (found["questions"], found["accuracy"], found["exact_match"]) == (4, 0.5, 0.25)
    assert (found["judge"]["judged"], found["judge"]["em"]["both_yes"], found["judge"]["em"]["first_only"]) == (3, 1, 1)


async def test_exact_match_never_overrules_the_judge(judge: JudgeServer) -> None:
    config = settings(judge)
    config.evaluation.judge_all = True
    judge.say = lambda verdict, n: "<judge>No</judge><reason>Not of this picture.</reason>"
    (summary,) = await evaluated(config, "exact")
    assert (summary.correct, summary.em, summary.subem, summary.judged) == (False, True, True, False)


async def test_a_judge_that_returns_prose_breaks_the_question_and_does_not_make_it_wrong(judge: JudgeServer) -> None:
    config = settings(judge, attempts=2, deadline_seconds=5.0)
    config.evaluation.judge_all = True
    judge.say = lambda verdict, n: "What a lovely answer, I would call it mostly right."
    (summary,) = await evaluated(config, "exact")
    assert (summary.outcome, summary.judged, summary.em) == (Outcome.INFRA_ERROR, None, False)
    assert "no verdict of the judge" in summary.detail
    found = row([summary])
    assert (found["questions"], found["infra_errors"], found["accuracy"]) == (0, 1, None)


def test_a_judge_of_everything_must_be_there() -> None:
    paths = ["model.path=m", "data.train=a", "data.test=b", "evaluation.judge_all=true"]
    with pytest.raises(ConfigError, match=r"judge_all needs a judge: set tools\.judge\.kind=chat"):
        load(None, paths)
    assert load(None, [*paths, "tools.judge.kind=chat", "tools.judge.url=http://x/v1", "tools.judge.model=m"]).evaluation.judge_all
