"""The reward table of spec §3.1 and its options."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmsr_ray.agent.grammar import parse_turn
from mmsr_ray.config import AgentConfig, RewardConfig
from mmsr_ray.rewards.score import overlong, score
from mmsr_ray.types import Answer, Outcome, Reward, Sample, SealedTokens, TextSearch, ToolKind, ToolResult, Trajectory, Turn

IMAGE = "<reason>who</reason><search><img></search>"
TEXT = "<reason>when</reason><text_search>q</text_search>"
RIGHT = "<reason>so</reason><answer>Paris</answer>"
WRONG = "<reason>so</reason><answer>Rome</answer>"
SAMPLE = Sample("u", "Where?", b"", ("Paris", "City of Light"))
PATHS = AgentConfig().allowed_paths
NONE = np.zeros(0)
TOKENS = SealedTokens(NONE, NONE, NONE, NONE, NONE, ())


def trajectory(*texts: str, outcome: Outcome | None = None, workflow: str = "on_demand") -> Trajectory:
    actions = [parse_turn(text) for text in texts]
    last = actions[-1]
    ended = Outcome.OK if isinstance(last, Answer) else Outcome.POLICY_ERROR
    answer = last.text if isinstance(last, Answer) and outcome in (None, Outcome.OK) else None
    turns = tuple(Turn(text, action, 1, True) for text, action in zip(texts, actions, strict=True))
    return Trajectory("u", 0, workflow, SAMPLE.question, turns, outcome or ended, "", answer, TOKENS)


def rewarded(*texts: str, step: int = 1, outcome: Outcome | None = None, **settings: object) -> Reward:
    return score(trajectory(*texts, outcome=outcome), SAMPLE, RewardConfig(**settings), PATHS, step)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "total"),
    [
        ([RIGHT], 1.0),
        ([IMAGE, RIGHT], 0.91),
        ([IMAGE, TEXT, RIGHT], 0.91),
        (["<answer>the city of light</answer>"], 0.9),
        ([TEXT, TEXT, RIGHT], 0.81),
        ([TEXT, IMAGE, RIGHT], 0.81),
        ([WRONG], 0.1),
        ([IMAGE, TEXT, WRONG], 0.1),
        (["<answer>Rome</answer>"], 0.0),
        ([IMAGE, TEXT, TEXT], 0.0),
        (["Unable to answer due to lack of relevant information"], 0.0),
        (["<reason>or <search><img></search>?</reason><answer>Paris</answer>"], 0.81),  # a mention counts, spec §3.5
    ],
)
def test_the_table(texts: list[str], total: float) -> None:
    assert rewarded(*texts).total == pytest.approx(total)


def test_parts() -> None:
    searched, guessed = rewarded(IMAGE, TEXT, RIGHT), rewarded(WRONG)
    assert (searched.correct, searched.well_formed, searched.searches_counted) == (True, True, 2)
    assert (guessed.correct, guessed.well_formed, guessed.searches_counted) == (False, True, 0)


def test_per_call() -> None:
    assert rewarded(IMAGE, TEXT, RIGHT, per_call=True).total == pytest.approx(0.9 * 0.81 + 0.1)
    assert rewarded(IMAGE, RIGHT, per_call=True).total == pytest.approx(0.91)


@pytest.mark.parametrize(("step", "factor"), [(0, 1.1), (1, 1.1), (6, 1.0), (11, 0.9), (99, 0.9)])
def test_warm_up_goes_from_bonus_to_penalty(step: int, factor: float) -> None:
    assert rewarded(IMAGE, RIGHT, step=step, penalty_warmup_steps=10).total == pytest.approx(0.9 * factor + 0.1)
    assert rewarded(RIGHT, step=step, penalty_warmup_steps=10).total == pytest.approx(1.0)


def test_weights_and_matcher_are_settings() -> None:
    assert rewarded(IMAGE, RIGHT, format_weight=0.0, search_penalty=0.5).total == pytest.approx(0.5)
    long = "<reason>so</reason><answer>It is Paris</answer>"
    assert not rewarded(long).correct
    assert rewarded(long, match="subem").correct


def test_a_capped_turn_earns_nothing_even_if_it_looks_right() -> None:
    assert rewarded(RIGHT, outcome=Outcome.POLICY_ERROR).total == 0.0


def test_infrastructure_has_no_reward() -> None:
    with pytest.raises(ValueError, match="infrastructure error"):
        rewarded(IMAGE, outcome=Outcome.INFRA_ERROR)


def test_workflows_without_tags() -> None:
    result = ToolResult(ToolKind.TEXT, "q")
    turns = (Turn("q", TextSearch("q"), 1, True, result), Turn("Paris", Answer("Paris"), 1, True))
    rag = Trajectory("u", 0, "rag", "Where?", turns, Outcome.OK, "", "Paris", TOKENS)
    reward = score(rag, SAMPLE, RewardConfig(), PATHS, 1)
    assert (reward.correct, reward.well_formed, reward.searches_counted) == (True, True, 1)
    failed = Trajectory("u", 0, "direct", "Where?", (), Outcome.POLICY_ERROR, "", None, TOKENS)
    assert score(failed, SAMPLE, RewardConfig(), PATHS, 1).total == 0.0


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0.0), (80, 0.0), (90, -0.5), (100, -1.0), (101, -1.0)])
def test_overlong_is_punished_as_in_dapo(tokens: int, expected: float) -> None:
    """Equation 13 with L_max = 100 and L_cache = 20: 0 up to 80, then down to -1 at 100, then -1."""
    assert overlong(tokens, 100, 20) == pytest.approx(expected)
    assert overlong(tokens, 0, 0) == 0.0


def test_overlong_counts_what_the_policy_wrote() -> None:
    turns = tuple(replace(turn, tokens=45) for turn in trajectory(IMAGE, RIGHT).turns)
    long = replace(trajectory(IMAGE, RIGHT), turns=turns)
    assert score(long, SAMPLE, RewardConfig(overlong_limit=100, overlong_buffer=20), PATHS, 1).total == pytest.approx(0.91 - 0.5)
    assert score(long, SAMPLE, RewardConfig(overlong_limit=50), PATHS, 1).total == pytest.approx(0.91 - 1.0)


def test_per_call_warm_up_and_format_together() -> None:
    """Spec §3.2: (1 - p(s)) for each search, with p(s) = -p + 2 p min((s - 1) / W, 1)."""
    for step in range(1, 8):
        p = -0.2 + 0.4 * min((step - 1) / 5, 1)
        got = rewarded(IMAGE, TEXT, RIGHT, step=step, per_call=True, search_penalty=0.2, penalty_warmup_steps=5).total
        assert got == pytest.approx(0.9 * (1 - p) ** 2 + 0.1)
