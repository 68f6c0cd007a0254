"""What the driver learns of a trajectory beyond its reward: how calls ended, what rules and judge say."""

from __future__ import annotations

from dataclasses import replace

from mmsr_ray.rollout.summary import summarise
from mmsr_ray.types import Answer, ImageSearch, Outcome, TextHit, TextSearch, ToolFailure, ToolKind, ToolResult, Turn
from tests.evaluation.test_trajectories import SAMPLE, trajectory


def call(kind: ToolKind, failure: ToolFailure | None, attempts: int = 1) -> Turn:
    hits = () if failure else (TextHit("http://b", "Ada did."),)
    result = ToolResult(kind, "q", hits, failure, attempts=attempts)
    return Turn("t", ImageSearch() if kind is ToolKind.IMAGE else TextSearch("q"), 1, True, result)


def test_a_call_counts_once_and_by_how_it_ended() -> None:
    turns = (
        call(ToolKind.IMAGE, ToolFailure.NO_RESULTS),
        call(ToolKind.TEXT, None),
        call(ToolKind.TEXT, ToolFailure.TIMEOUT, attempts=4),
    )
    broken = replace(trajectory(), turns=turns, outcome=Outcome.INFRA_ERROR, answer=None, reward=None)
    told = summarise(broken, SAMPLE)
    assert (told.image_searches, told.image_failures, told.image_no_results) == (1, 0, 1)
    assert (told.text_searches, told.text_failures, told.text_no_results) == (2, 1, 0)
    assert told.tool_failures == 2, "as ever: calls without a hit"
    assert (told.em, told.subem, told.judged) == (False, False, None)


def test_rules_and_judge_are_told_whoever_decided() -> None:
    said = replace(trajectory(), answer="It was Ada.", turns=(Turn("t", Answer("It was Ada."), 1, True),))
    assert (summarise(said, SAMPLE).em, summarise(said, SAMPLE).subem, summarise(said, SAMPLE).judged) == (False, True, None)
    verdict = ToolResult(ToolKind.JUDGE, "k", (TextHit("", "", "no"),))
    assert summarise(replace(trajectory(), verdict=verdict), replace(SAMPLE, category="people")).judged is False
    failed = ToolResult(ToolKind.JUDGE, "k", failure=ToolFailure.BAD_RESPONSE)
    assert summarise(replace(trajectory(), verdict=failed), SAMPLE).judged is None
    assert summarise(trajectory(), replace(SAMPLE, category="people")).category == "people"
