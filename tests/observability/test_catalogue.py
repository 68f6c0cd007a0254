"""What there is to browse: the order of the run, and rows that can be asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsr_ray.evaluation.trajectories import write_trajectories
from mmsr_ray.observability.catalogue import episode_files, read_source, step_of
from mmsr_ray.types import Need
from tests.observability.episodes import episode, searching


def test_evaluations_by_time_then_steps_by_number(tmp_path: Path) -> None:
    names = ["after_RL-rag", "before_RL-rag", "at_step_2-on_demand", "step_000010", "step_000009", "step_1000000"]
    for name in names:
        write_trajectories(tmp_path / f"{name}.parquet", [], split="test")
    for second, name in enumerate(("before_RL-rag", "at_step_2-on_demand", "after_RL-rag")):
        os.utime(tmp_path / f"{name}.parquet", (second, second))
    found = [file.stem for file in episode_files(tmp_path)]
    assert found == ["before_RL-rag", "at_step_2-on_demand", "after_RL-rag", "step_000009", "step_000010", "step_1000000"]
    assert [step_of(tmp_path / f"{name}.parquet") for name in names] == [None, None, None, 10, 9, 1_000_000]
    assert episode_files(tmp_path / "nowhere") == []


def test_rows_say_what_was_searched_and_what_came_out(tmp_path: Path) -> None:
    file = tmp_path / "deep er" / "step_000003.parquet"
    write_trajectories(file, [searching("a"), episode("b" * 300, Need.TEXT, False)], split="train", step=3)
    source = read_source(file, tmp_path)
    assert (source.stem, source.title, source.step, source.count) == ("deep-er-step_000003", "step 3", 3, 2)
    assert (source.right, source.searching, source.reward) == (0.5, 0.5, 0.5)
    first, second = source.rows
    assert (first.uid, first.need, first.searched, first.verdict, first.outcome) == ("a", "mix_required", "image text", "right", "ok")
    assert (second.searched, second.verdict, second.answer, len(second.uid)) == ("no", "wrong", "Bob", 100)


def test_an_evaluation_has_its_name_and_nothing_judged_is_no_share(tmp_path: Path) -> None:
    write_trajectories(tmp_path / "at_step_2-on_demand.parquet", [], split="test")
    source = read_source(tmp_path / "at_step_2-on_demand.parquet", tmp_path)
    assert (source.title, source.right, source.searching, source.reward) == ("at step 2, on demand", None, 0.0, None)


def test_a_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(KeyError):
        read_source(tmp_path / "other.parquet", tmp_path)
