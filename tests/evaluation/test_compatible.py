"""What a resumed evaluation may have otherwise, by the settings that there are."""

from __future__ import annotations

import pytest

from mmsr_ray.config import load, to_dict
from mmsr_ray.evaluation.compatible import FREE, OF_A_SERVICE, refusal

PATHS = ["model.path=m", "data.train=a", "data.test=b"]


def settings(*overrides: str) -> dict:
    return to_dict(load(None, [*PATHS, *overrides]))


@pytest.mark.parametrize(
    "override",
    [
        "run.name=again",
        "rollout.num_runners=0",
        "rollout.start_seconds=9",
        "agent.deadline_seconds=5",
        "tools.text_search.rate_per_second=1",
        "tools.reader.price.per_call=0.1",
        "tools.budget_usd=5",
        "evaluation.workflows=[direct]",
        "data.test=moved",
    ],
)
def test_what_only_says_how_or_where_may_differ(override: str) -> None:
    assert refusal(settings(), settings(override)) == ""


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("agent.topk=3", "agent.topk was 5 and is 3"),
        ("model.path=other", "model.path was 'm' and is 'other'"),
        ("tools.summariser.kind=chat", "tools.summariser.kind was 'extractive' and is 'chat'"),
        ("evaluation.questions=7", "evaluation.questions was 0 and is 7"),
        ("run.seed=1", "run.seed was 0 and is 1"),
    ],
)
def test_what_an_answer_follows_from_may_not(override: str, said: str) -> None:
    assert refusal(settings(), settings(override)) == f"{said}; set it as it was, or choose another run.name"


def test_every_name_is_that_of_a_setting() -> None:
    known = settings()
    for name in FREE:
        section, _, key = name.partition(".")
        assert section in known and (not key or key in known[section]), name
    assert set(OF_A_SERVICE) <= known["tools"]["reader"].keys()
