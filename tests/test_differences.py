"""What is told apart between two configs."""

from __future__ import annotations

from mmsr_ray.differences import differences, said, under


def test_settings_that_one_side_lacks_are_differences() -> None:
    assert differences({"grpo": {"old": 1}}, {"grpo": {"new": None}, "x": {"dir": "a"}}) == {"grpo.old": (1, None)}


def test_nested_settings_are_told_by_their_keys_and_places_are_not() -> None:
    found = differences(
        {"run": {"dir": "a"}, "tools": {"reader": {"kind": "jina"}, "cache": {"dir": "x"}}}, {"run": {"dir": "b"}, "tools": {"reader": {}}}
    )
    assert found == {"tools.reader.kind": ("jina", None)}
    assert said(found) == "tools.reader.kind was 'jina' and is None"
    assert said({}) == ""


def test_a_section_covers_its_settings_and_not_those_whose_name_begins_alike() -> None:
    assert under("rollout.num_runners", ["rollout"]) and under("run.seed", ["run.seed"])
    assert not under("rollouts.num_runners", ["rollout"]) and not under("run.seeded", ["run.seed"])
