"""Which stages are made, which are taken as they are, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mmsr_ray.data.construction.candidate import Candidate, read, write
from mmsr_ray.data.construction.flow import FAILED, FINAL, watched
from mmsr_ray.data.construction.stage_files import StageFiles, StageResult, summary
from mmsr_ray.data.schema import DataError
from mmsr_ray.tools.errors import BudgetSpent, ToolsError


class Run:
    """One submission with two stages, which counts what it makes."""

    def __init__(self, folder: Path, *, drop: int = 1, breaks: bool = False) -> None:
        self.made: list[str] = []
        self.told: list[str] = []
        self._breaks = breaks
        self.files = StageFiles(folder, self.told.append, lambda: 0.5 * len(self.made))
        first = self.files.stage("first", None, {"size": 10}, self._first)
        self.last = self.files.stage(
            "second", first, {"drop": drop}, lambda target, made_from: self._second(target, made_from, first, drop)
        )

    def _first(self, target: Path, made_from: Mapping[str, str]) -> None:
        self.made.append("first")
        write(target, (Candidate(str(i)) for i in range(10)), made_from)

    def _second(self, target: Path, made_from: Mapping[str, str], source: Path, drop: int) -> None:
        self.made.append("second")
        if self._breaks:
            raise ToolsError("the services are down")
        write(target, (c.dropped("too small") if int(c.key) < drop else c for c in read(source)), made_from)


def test_a_stage_that_is_whole_is_not_made_again_and_its_numbers_stay(tmp_path: Path) -> None:
    first = Run(tmp_path)
    again = Run(tmp_path)
    assert first.made == ["first", "second"] and again.made == []
    assert again.files.results == first.files.results
    result = again.files.results[1]
    assert (result.file, result.taken, result.made, result.kept, result.dropped) == ("02_second.parquet", 10, 10, 9, {"too small": 1})
    assert result.cost_usd == 0.5 and "made before" in again.told[-1]


def test_another_setting_is_refused_with_the_difference(tmp_path: Path) -> None:
    Run(tmp_path)
    with pytest.raises(DataError, match=r"02_second.parquet was made from something else: drop was '1' and is '2'"):
        Run(tmp_path, drop=2)
    (tmp_path / "02_second.parquet").unlink()
    assert Run(tmp_path, drop=2).made == ["second"]


def test_another_input_is_refused_too(tmp_path: Path) -> None:
    Run(tmp_path)
    write(tmp_path / "01_first.parquet", [Candidate("9")], {"size": "10"})
    with pytest.raises(DataError, match="input was"):
        Run(tmp_path)


def test_a_stage_that_breaks_leaves_no_file_and_is_made_by_the_next_submission(tmp_path: Path) -> None:
    with pytest.raises(ToolsError):
        Run(tmp_path, breaks=True)
    assert not (tmp_path / "02_second.parquet").exists()
    assert Run(tmp_path).made == ["second"]


def test_a_few_failed_services_are_counted_and_many_end_the_stage() -> None:
    fine, failed = Candidate("k"), Candidate("k").dropped(FAILED, "timeout")
    assert len(list(watched(iter([fine] * 95 + [failed] * 5), 0.1))) == 100
    with pytest.raises(ToolsError, match="failed for 20 of 100 candidates"):
        list(watched(iter([fine] * 80 + [failed] * 20), 0.1))
    with pytest.raises(ToolsError, match="failed for 50 of 50"):
        list(watched(iter([failed] * 10_000), 0.1))
    with pytest.raises(BudgetSpent):
        list(watched(iter([fine, fine.dropped(FINAL, "no money")]), 0.5))


def test_the_summary_has_pace_and_price_of_a_thousand_questions() -> None:
    results = [
        StageResult("a", "01_a.parquet", 0, 10, 10, {}, 60.0, 1.0),
        StageResult("b", "02_b.parquet", 10, 10, 5, {"x": 5}, 120.0, 1.0),
    ]
    content = summary(results, 5, 2.0, run="r")
    assert content["questions_per_hour"] == 100 and content["cost_usd_per_1000_questions"] == 400
    assert content["stages"][1]["dropped"] == {"x": 5} and content["run"] == "r"
