"""Candidates by key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmsr_ray.data.construction.candidate import write
from mmsr_ray.data.construction.review.stage import Difference, Stage, Tried, attempts_of, content_of, difference, newest_stage
from mmsr_ray.data.construction.review.verdicts import ReviewError
from tests.data.construction.review.samples import candidate


def test_every_kept_candidate_is_found_by_its_key(tmp_path: Path) -> None:
    many = [replace(candidate(0), key=f"k{n}", answer=str(n)) for n in range(150)]
    many[70] = many[70].dropped("no image")
    write(tmp_path / "stage.parquet", many)
    stage = Stage(tmp_path / "stage.parquet")
    assert list(stage.contents) == [c.key for c in many if c.kept]
    assert all(stage.get(c.key) == c for c in (many[149], many[0], many[64], many[63], many[100]))
    with pytest.raises(KeyError):
        stage.get("k70")
    stage.close()


def test_the_content_is_what_a_verdict_rests_on() -> None:
    one = candidate(0)
    same = (replace(one, attempts="[]"), replace(one, need="search_free"), replace(one, category="x"))
    assert {content_of(other) for other in same} == {content_of(one)}
    changed = ({"question": "Who?"}, {"answer": "x"}, {"aliases": ()}, {"image": b"x"}, {"page_text": "x"})
    assert len({content_of(replace(one, **change)) for change in changed} | {content_of(one)}) == 6


def test_a_difference_counts_what_is_missing_changed_and_new() -> None:
    assert difference({"a": "1", "b": "1", "c": "1"}, {"b": "1", "c": "2", "d": "1", "e": "1"}) == Difference(1, 1, 2)
    assert not difference({"a": "1"}, {"a": "1"})


def test_the_newest_stage_is_no_review(tmp_path: Path) -> None:
    with pytest.raises(ReviewError, match="holds no stage file"):
        newest_stage(tmp_path)
    for name in ("03_dedup", "05_balance", "06_review"):
        write(tmp_path / f"{name}.parquet", [candidate(0)])
    assert newest_stage(tmp_path).name == "05_balance.parquet"


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "stage.parquet", [candidate(0), candidate(0)])
    with pytest.raises(ReviewError, match="twice"):
        Stage(tmp_path / "stage.parquet")


@pytest.mark.parametrize("text", ["", "not JSON", "3", "[1, null]", '[{"searches": 3}]', '[{"image_searches": "many"}]'])
def test_attempts_of_another_make_are_none(text: str) -> None:
    assert attempts_of(text) == []


def test_attempts_are_read_as_far_as_they_are_told() -> None:
    assert attempts_of('[{"correct": true}, {}]') == [Tried(True, "", 0, 0, []), Tried(None, "", 0, 0, [])]
    full = attempts_of(candidate(0).attempts)
    assert [one.correct for one in full] == [n % 3 == 0 for n in range(8)]
    assert [search.tool for search in full[0].searches] == ["image", "text", "text"]
    assert full[0].searches[1].hits[0]["summary"] == "Its architect was Mira Oswin."
