"""The arithmetic of a row, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.evaluation.metrics import measure, search_quality, wilson
from mmsr_ray.types import Need, Outcome, TrajectorySummary


def summary(image: int = 0, text: int = 0, correct: bool = False, need: Need | None = None, **changes: Any) -> TrajectorySummary:
    values: dict[str, Any] = {
        "uid": "u",
        "index": 0,
        "outcome": Outcome.OK,
        "detail": "",
        "reward": float(correct),
        "correct": correct,
        "well_formed": True,
        "image_searches": image,
        "text_searches": text,
        "tool_failures": 0,
        "turns": 1 + image + text,
        "length": 10,
        "sampled_tokens": 5,
        "pictures": 1,
        "version_min": 0,
        "version_max": 0,
        "generate_seconds": 0.0,
        "tool_seconds": 0.0,
        "cost_usd": 0.0,
        "need": need,
    }
    return TrajectorySummary(**(values | changes))


def row(summaries: list[TrajectorySummary], **more: Any) -> dict[str, Any]:
    return measure(summaries, name="n", split="s", search_limit=2, **more)


def test_a_row_by_hand() -> None:
    result = row(
        [
            summary(0, 0, True, Need.SEARCH_FREE),
            summary(1, 0, False, Need.SEARCH_FREE),  # one call too many
            summary(1, 0, True, Need.IMAGE),
            summary(0, 1, False, Need.IMAGE),  # the wrong kind: one false positive, one false negative
            summary(0, 2, True, Need.TEXT),  # the second is not needed
            summary(1, 1, True, Need.MIX),
            summary(1, 0, False, Need.MIX),  # one missing
            summary(0, 0, False, Need.MIX),  # two missing
        ]
    )
    assert (result["name"], result["split"], result["questions"], result["infra_errors"]) == ("n", "s", 8, 0)
    assert result["accuracy"] == 4 / 8
    assert result["search_ratio_calls"] == 8 / 16
    assert result["search_ratio_responses"] == 6 / 8
    assert result["searches_per_question"] == 8 / 8
    assert result["search_precision"] == 5 / 8
    assert result["search_recall"] == 5 / 9
    assert result["needed_search_ratio"] == 9 / 16
    assert result["behaviour"] == {"correct_search": 3 / 8, "correct_no_search": 1 / 8, "wrong_search": 3 / 8, "wrong_no_search": 1 / 8}
    assert {name: (path["share"], path["accuracy"]) for name, path in result["paths"].items()} == {
        "none": (2 / 8, 1 / 2),
        "image": (3 / 8, 1 / 3),
        "text": (2 / 8, 1 / 2),
        "both": (1 / 8, 1.0),
    }
    assert result["by_need"]["mix_required"]["questions"] == 3
    assert result["by_need"]["mix_required"]["searches_per_question"] == 1.0
    assert result["by_need"]["image_required"]["text_searches_per_question"] == 0.5
    assert result["by_need"]["search_free"]["search_recall"] is None


def test_design_columns_come_first_and_in_order() -> None:
    names = "name split questions accuracy search_ratio_calls search_ratio_responses searches_per_question search_precision search_recall needed_search_ratio"
    assert list(row([summary()]))[:10] == names.split()


def test_infrastructure_failures_are_counted_apart() -> None:
    result = row([summary(correct=True), summary(1, outcome=Outcome.INFRA_ERROR), summary(outcome=Outcome.POLICY_ERROR)], infra_errors=3)
    assert (result["questions"], result["infra_errors"], result["accuracy"], result["search_ratio_calls"]) == (2, 4, 0.5, 0.0)


def test_undefined_ratios_are_none() -> None:
    empty = row([])
    assert empty["questions"] == 0
    for key in ("accuracy", "search_ratio_calls", "search_precision", "search_recall", "needed_search_ratio", "accuracy_low"):
        assert empty[key] is None
    real_benchmark = row([summary(1, 1)])
    assert real_benchmark["search_ratio_calls"] == 1.0
    assert (real_benchmark["search_precision"], real_benchmark["search_recall"], real_benchmark["needed_search_ratio"]) == (
        None,
        None,
        None,
    )
    assert real_benchmark["by_need"] == {}
    assert search_quality([summary(0, 0, need=Need.IMAGE)]) == (None, 0.0)
    with pytest.raises(ValueError, match="search_limit"):
        measure([], name="n", split="s", search_limit=0)


def test_fixed_rag_on_free_questions_has_no_precision() -> None:
    assert search_quality([summary(1, 1, need=Need.SEARCH_FREE)] * 3) == (0.0, None)


def test_wilson_against_known_values() -> None:
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0


@given(
    st.lists(
        st.builds(summary, st.integers(0, 1), st.integers(0, 2), st.booleans(), st.sampled_from([None, *Need])),
        min_size=1,
        max_size=30,
    )
)
def test_ratios_stay_in_range(summaries: list[TrajectorySummary]) -> None:
    result = row(summaries)
    for key in ("accuracy", "search_ratio_responses", "search_precision", "search_recall", "needed_search_ratio"):
        assert result[key] is None or 0 <= result[key] <= 1
    assert math.isclose(sum(result["behaviour"].values()), 1.0)
    assert result["accuracy_low"] <= result["accuracy"] + 1e-9 <= result["accuracy_high"] + 2e-9
    precision, recall = search_quality(
        [summary(s.need.searches > 1 or s.need is Need.IMAGE, s.need in (Need.TEXT, Need.MIX), need=s.need) for s in summaries if s.need]
    )
    assert precision in (None, 1.0)
    assert recall in (None, 1.0)


def test_calls_by_tool_and_how_they_ended() -> None:
    broken = summary(1, 0, outcome=Outcome.INFRA_ERROR, image_failures=1, tool_failures=1, cost_usd=0.5)
    result = row([summary(1, 2, True, text_no_results=1, tool_failures=1), summary(1, 0), summary(0, 0), summary(0, 1), broken])
    image, text, both = (result["tools"][tool] for tool in ("image", "text", "both"))
    assert (image["calls"], text["calls"], both["calls"]) == (2, 3, 5)
    assert (image["search_ratio_responses"], text["search_ratio_responses"], both["search_ratio_responses"]) == (2 / 4, 2 / 4, 3 / 4)
    assert (image["search_ratio_calls"], both["search_ratio_calls"]) == (2 / 8, result["search_ratio_calls"])
    assert (image["share_of_calls"], text["share_of_calls"], both["share_of_calls"]) == (2 / 5, 3 / 5, 1.0)
    assert (image["attempted"], image["failures"], image["failure_rate"], image["no_results"]) == (3, 1, 1 / 3, 0)
    assert (text["failures"], text["no_results"], text["no_results_rate"]) == (0, 1, 1 / 3)
    assert (both["failure_rate"], both["no_results_rate"]) == (1 / 6, 1 / 6)
    assert result["tool_failures"] == 1
    assert result["per_question"]["cost_usd_all"] == 0.5
    assert row([])["tools"]["image"]["failure_rate"] is None


def test_what_a_question_takes() -> None:
    result = row(
        [summary(sampled_tokens=10, length=100, generate_seconds=1.0, tool_seconds=2.0, cost_usd=0.02), summary(sampled_tokens=20)]
    )
    asked = result["per_question"]
    assert (asked["sampled_tokens"], asked["transcript_tokens"], asked["turns"]) == (15, 55, 1)
    assert (asked["generate_seconds"], asked["tool_seconds"], asked["cost_usd"]) == (0.5, 1.0, 0.01)


def test_kinds_are_told_apart_where_there_are_several() -> None:
    result = row([summary(1, 0, True, source="a"), summary(0, 0, False, source="a"), summary(0, 0, True, source="b")])
    assert result["by_category"] == {}
    assert list(result["by_source"]) == ["a", "b"]
    assert (result["by_source"]["a"]["accuracy"], result["by_source"]["a"]["search_ratio_calls"]) == (0.5, 0.25)
    by_category = row([summary(category="x"), summary()])["by_category"]
    assert {name: kind["questions"] for name, kind in by_category.items()} == {"": 1, "x": 1}


def test_the_judge_beside_the_rules() -> None:
    assert row([summary(em=True, subem=True), summary(subem=True)])["judge"] == {}
    result = row(
        [
            summary(0, 0, True, em=True, subem=True, judged=True),
            summary(0, 0, True, subem=True, judged=True),
            summary(0, 0, False, judged=False),
            summary(0, 0, False),  # nothing answered
            summary(outcome=Outcome.INFRA_ERROR),  # no verdict
        ]
    )
    assert (result["accuracy"], result["exact_match"], result["sub_match"], result["infra_errors"]) == (0.5, 0.25, 0.5, 1)
    assert (result["judge"]["judged"], result["judge"]["yes"]) == (3, 2 / 3)
    assert (result["judge"]["em"]["both_yes"], result["judge"]["em"]["first_only"]) == (1, 1)
    assert (result["judge"]["subem"]["agreement"], result["judge"]["subem"]["kappa"]) == (1.0, 1.0)


@given(
    st.lists(
        st.builds(
            summary,
            st.integers(0, 1),
            st.integers(0, 2),
            st.booleans(),
            source=st.sampled_from("ab"),
            outcome=st.sampled_from(list(Outcome)),
        ),
        max_size=20,
    )
)
def test_parts_add_up(summaries: list[TrajectorySummary]) -> None:
    result = row(summaries)
    tools = result["tools"]
    if tools["both"]["calls"]:
        assert math.isclose(tools["image"]["share_of_calls"] + tools["text"]["share_of_calls"], 1.0)
    if result["questions"]:
        assert math.isclose(
            tools["image"]["search_ratio_calls"] + tools["text"]["search_ratio_calls"], result["search_ratio_calls"], abs_tol=1e-12
        )
        responses = [tools[tool]["search_ratio_responses"] for tool in ("image", "text")]
        rounding = 1e-12
        assert max(responses) - rounding <= result["search_ratio_responses"] <= sum(responses) + rounding
    assert sum(kind["questions"] for kind in result["by_source"].values()) in (0, result["questions"])
