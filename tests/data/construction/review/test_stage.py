"""Candidates by key, and what the policy made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmsr_ray.data.construction.candidate import write
from mmsr_ray.data.construction.review.stage import Attempts, Difference, Stage, content_of, counted, difference, newest_stage
from mmsr_ray.data.construction.review.verdicts import ReviewError
from mmsr_ray.data.schema import DataError
from tests.data.construction.review.samples import candidate, make_run


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


def test_attempts_are_found_and_at_most_so_many(tmp_path: Path) -> None:
    run = make_run(tmp_path, [candidate(n) for n in range(12)])
    attempts = Attempts(run)
    found = attempts.of(candidate(9).key, 8)
    assert [episode.uid for episode in found] == [candidate(9).key] * 2
    assert found[0].turns[0].hits[0].thumbnail
    assert len(attempts.of(candidate(9).key, 1)) == 1
    assert attempts.of("nobody", 8) == []
    (run / "trajectories" / "x.parquet").write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot read the trajectories"):
        Attempts(run)


@pytest.mark.parametrize("text", ["", "not JSON", "{}", "[1, null]"])
def test_attempts_of_another_make_are_none(text: str) -> None:
    assert counted(text) == []
    assert counted('[{"correct": true}]') == [{"correct": True}]
