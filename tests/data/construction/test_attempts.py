"""Rollouts as a candidate carries them: ways and answers, without pictures and without what infrastructure broke."""

import json
from dataclasses import replace

import pytest

from mmsr_ray.data.construction.attempts import Attempt, from_json, to_json
from mmsr_ray.types import ImageHit, Need, Outcome, Picture, Reward, TextHit, ToolFailure, ToolKind, ToolResult, Trajectory
from tests.rewards.test_score import trajectory

SEARCH = "<reason>who</reason><search><img></search>"
TEXT = "<reason>so</reason><text_search>his city</text_search>"
ANSWER = "<reason>so</reason><answer>Rome</answer>"
FOUND = ToolResult(ToolKind.IMAGE, "sha", (ImageHit("Aldo", Picture(b"pixels", "sha"), "http://a"),))
READ = ToolResult(ToolKind.TEXT, "his city", (TextHit("http://b", "It is Rome", "Aldo"),))


def searched(*texts: str, tools: list[ToolResult], correct: bool) -> Trajectory:
    made = trajectory(*texts)
    turns = tuple(replace(turn, tool=tool) for turn, tool in zip(made.turns, [*tools, None], strict=True))
    return replace(made, turns=turns, answer="Rome", reward=Reward(1.0, correct, True, len(tools)))


def test_rollouts_become_text_and_attempts_again() -> None:
    broken = replace(searched(ANSWER, tools=[], correct=False), outcome=Outcome.INFRA_ERROR, reward=None)
    nothing = ToolResult(ToolKind.TEXT, "his city", failure=ToolFailure.NO_RESULTS)
    text = to_json(
        [
            searched(SEARCH, TEXT, ANSWER, tools=[FOUND, READ], correct=True),
            broken,
            searched(TEXT, ANSWER, tools=[nothing], correct=False),
            searched(ANSWER, tools=[], correct=True),
        ]
    )
    assert from_json(text) == [Attempt(True, 1, 1), Attempt(False, 0, 1), Attempt(True, 0, 0)]
    assert [attempt.way for attempt in from_json(text)] == [Need.MIX, Need.TEXT, Need.SEARCH_FREE]
    first, second, _ = json.loads(text)
    assert first["answer"] == "Rome"
    assert first["searches"] == [
        {"tool": "image", "query": "", "failure": None, "hits": [{"title": "Aldo", "url": "http://a", "summary": ""}]},
        {"tool": "text", "query": "his city", "failure": None, "hits": [{"title": "Aldo", "url": "http://b", "summary": "It is Rome"}]},
    ]
    assert second["searches"][0]["failure"] == "no_results"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"correct": true}]'])
def test_what_is_no_list_of_attempts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no attempts"):
        from_json(text)
