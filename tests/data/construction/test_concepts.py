"""Lists of concepts, and samples of their head and tail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmsr_ray.data.construction.concepts import Concept, read_concepts, sample
from mmsr_ray.data.construction.settings import ConstructionConfig
from mmsr_ray.data.schema import DataError


def written(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_every_form_of_a_list_is_read_and_each_name_counts_once(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain.txt", "Eiffel Tower\n\n  eiffel   tower\nLouvre\n" + "x" * 300)
    names = written(tmp_path / "names.json", ["Eiffel Tower", "Louvre"])
    counted = written(tmp_path / "counted.json", {"Eiffel Tower": 900, "Louvre": 20})
    assert read_concepts(plain) == [Concept("Eiffel Tower"), Concept("Louvre")]
    with_counts = [Concept("Eiffel Tower", 900), Concept("Louvre", 20)]
    assert read_concepts(counted) == with_counts
    assert read_concepts(names, counted) == with_counts
    assert read_concepts(names, written(tmp_path / "counts.json", [900, 20])) == with_counts


@pytest.mark.parametrize(
    ("content", "counts", "sentence"),
    [
        ("{", None, "is no JSON"),
        ([1, 2], None, "is no list of concepts"),
        ([], None, "names no concept"),
        (["a", "b"], [1], "1 counts for the 2 names"),
        ({"a": "many"}, None, "no whole numbers"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: object, counts: object, sentence: str) -> None:
    path = written(tmp_path / "concepts.json", content)
    counts_path = written(tmp_path / "counts.json", counts) if counts else ""
    with pytest.raises(DataError, match=sentence):
        read_concepts(path, counts_path)


def test_head_and_tail_are_sampled_apart_and_alike_for_any_order() -> None:
    concepts = [Concept(f"c{i}", 1000 - i) for i in range(100)]
    config = ConstructionConfig(head_share=0.2, head=5, tail=7)
    chosen = list(sample(concepts, config, seed=1))
    assert [c.rank for c in chosen] == ["head"] * 5 + ["tail"] * 7
    assert all(int(c.concept[1:]) < 20 for c in chosen[:5]) and all(int(c.concept[1:]) >= 20 for c in chosen[5:])
    assert list(sample(concepts[::-1], config, seed=1)) == chosen
    assert list(sample(concepts, config, seed=2)) != chosen


def test_zero_and_zero_take_all_and_a_list_without_counts_has_no_ranks() -> None:
    plain = [Concept(f"c{i}") for i in range(10)]
    assert len(list(sample(plain, ConstructionConfig(head=0, tail=0), 0))) == 10
    chosen = list(sample(plain, ConstructionConfig(head=2, tail=1), 0))
    assert len(chosen) == 3 and {c.rank for c in chosen} == {""}
