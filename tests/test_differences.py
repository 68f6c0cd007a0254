"""What is told apart between two configs."""

from __future__ import annotations

from mmsr_ray.differences import differences, said, under


def test_what_no_config_knows_is_a_difference_where_one_side_lacks_it() -> None:
    assert differences({"grpo": {"old": 1}}, {"grpo": {"new": None}, "x": {"dir": "a"}}) == {"grpo.old": (1, None)}


def test_a_setting_of_a_later_release_is_none_while_it_has_its_default() -> None:
    assert differences({"grpo": {}}, {"grpo": {"group_size": 8}}) == {}
    assert differences({"grpo": {}}, {"grpo": {"group_size": 4}}) == {"grpo.group_size": (8, 4)}
    assert differences({"grpo": {"group_size": 4}}, {}) == {"grpo.group_size": (4, 8)}


def test_nested_settings_are_told_by_their_keys_and_places_are_not() -> None:
    found = differences(
        {"run": {"dir": "a"}, "tools": {"reader": {"kind": "corpus"}, "cache": {"dir": "x"}}},
        {"run": {"dir": "b"}, "tools": {"reader": {}}},
    )
    assert found == {"tools.reader.kind": ("corpus", "jina")}
    assert said(found) == "tools.reader.kind was 'corpus' and is 'jina'"
    assert said({}) == ""


def test_a_section_covers_its_settings_and_not_those_whose_name_begins_alike() -> None:
    assert under("rollout.num_runners", ["rollout"]) and under("run.seed", ["run.seed"])
    assert not under("rollouts.num_runners", ["rollout"]) and not under("run.seeded", ["run.seed"])
