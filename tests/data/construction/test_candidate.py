"""Candidates and their files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mmsr_ray.data.construction.candidate import Candidate, from_table, key_of, read, read_made_from, to_table, write
from mmsr_ray.data.schema import DataError

ONE = Candidate(
    key_of("Nimbus"), concept="Nimbus", image=b"\x89PNG", page_text="Nimbus is a cloud.", question="What is this?", answer="a cloud",
    aliases=("cloud",), reviewers=("ann",),
)  # fmt: skip


def test_a_file_gives_back_what_was_written_with_counts(tmp_path: Path) -> None:
    many = [replace(ONE, key=str(i)) if i % 3 else ONE.dropped("no image", "nothing found") for i in range(200)]
    counts = write(tmp_path / "01_images.parquet", many, {"settings": "abc"})
    assert counts == {"kept": 133, "no image": 67}
    assert list(read(tmp_path / "01_images.parquet")) == many
    assert list(read(tmp_path / "01_images.parquet", kept=True)) == [c for c in many if c.kept]
    assert read_made_from(tmp_path / "01_images.parquet") == {"settings": "abc"}


def test_an_empty_stage_is_a_file_too(tmp_path: Path) -> None:
    assert write(tmp_path / "none.parquet", []) == {}
    assert list(read(tmp_path / "none.parquet")) == []


def test_a_stage_that_breaks_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> Iterator[Candidate]:
        yield from [ONE] * 100
        raise RuntimeError("the machine went away")

    with pytest.raises(RuntimeError):
        write(tmp_path / "stage.parquet", broken())
    assert not (tmp_path / "stage.parquet").exists()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="cannot read the stage file"):
        list(read(tmp_path / "x.parquet"))


def test_tables_are_lossless_and_keys_depend_on_order_and_boundaries() -> None:
    assert from_table(to_table([ONE])) == [ONE]
    assert ONE.answers == ("a cloud", "cloud")
    assert len({key_of("a", "bc"), key_of("ab", "c"), key_of("bc", "a"), key_of(b"abc")}) == 4
