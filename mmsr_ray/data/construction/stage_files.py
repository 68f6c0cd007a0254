"""The stage files of one run folder, NN_<stage>.parquet, and what they say about the stages.

Promise: a file that is whole and was made from the same settings and the same input is not made again, also after a kill. One that was
made from others is never mixed with new ones: the run is refused with the difference. Counts are read off the files, so they hold for
stages of earlier submissions too.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmsr_ray.data.construction.candidate import KEPT, read_made_from
from mmsr_ray.data.schema import DataError
from mmsr_ray.differences import differences, said

_CHUNK = 1 << 22

Make = Callable[[Path, Mapping[str, str]], Any]  # writes the file, with what it was made from


@dataclass(frozen=True)
class StageResult:
    """`taken` candidates went in, `made` came out of them, `kept` of these go on; the others are `dropped`, by reason.

    `seconds` are those of the submissions that worked at it, `cost_usd` what their services charged meanwhile.
    """

    name: str
    file: str
    taken: int
    made: int
    kept: int
    dropped: dict[str, int]
    seconds: float
    cost_usd: float

    @property
    def per_second(self) -> float | None:
        """Candidates made."""
        return self.made / self.seconds if self.seconds else None


class StageFiles:
    """`results` in the order of the stages; `spent` says how much money the run has spent up to now."""

    def __init__(self, folder: Path, tell: Callable[[str], None], spent: Callable[[], float]) -> None:
        self.folder = folder
        self.results: list[StageResult] = []
        self._tell, self._spent = tell, spent
        self._work = _Work(folder / "stages.json")

    def stage(self, name: str, source: Path | None, depends: Mapping[str, Any], make: Make) -> Path:
        """The file of the next stage, made by `make` unless it is there. `depends`: all that its content follows from, beside `source`.

        Raises DataError for a file that was made from something else, and whatever `make` raises: then there is no file.
        """
        target = self.folder / f"{len(self.results) + 1:02d}_{name}.parquet"
        made_from = {key: json.dumps(value, sort_keys=True) for key, value in depends.items()}
        if source is not None:
            made_from["input"] = file_hash(source)
        there = target.is_file()
        if there:
            _same(target, made_from)
        else:
            self._tell(f"== {name}")
            before, began = self._spent(), time.monotonic()
            try:
                make(target, made_from)
            finally:
                self._work.add(name, time.monotonic() - began, self._spent() - before)
        self.results.append(self._result(name, source, target))
        self._tell(_line(self.results[-1], there))
        return target

    def _result(self, name: str, source: Path | None, target: Path) -> StageResult:
        before = status_counts(source) if source else Counter[str]()
        after = status_counts(target)
        dropped = {reason: count for reason, count in (after - before).items() if reason != KEPT}
        made = after[KEPT] + sum(dropped.values())
        return StageResult(name, target.name, before[KEPT], made, after[KEPT], dropped, *self._work.of(name))


class _Work:
    """Seconds and money by stage, over all submissions, in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._spent: dict[str, list[float]] = json.loads(file.read_text()) if file.is_file() else {}

    def add(self, name: str, seconds: float, usd: float) -> None:
        past = self.of(name)
        self._spent[name] = [past[0] + seconds, past[1] + usd]
        partial = self._file.with_name(self._file.name + ".partial")
        partial.write_text(json.dumps(self._spent, indent=2))
        partial.replace(self._file)

    def of(self, name: str) -> tuple[float, float]:
        seconds, usd = self._spent.get(name, (0.0, 0.0))
        return seconds, usd


def _same(target: Path, made_from: Mapping[str, str]) -> None:
    found = differences(read_made_from(target), made_from)
    if found:
        raise DataError(
            f"{target} was made from something else: {said(found)}; set it as it was, choose another run.name, or remove this file and "
            "those with higher numbers to make them again"
        )


def status_counts(file: Path) -> Counter[str]:
    """Candidates by status; memory holds one column of one row group."""
    counts: Counter[str] = Counter()
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(columns=["status"]):
            counts.update(batch.column(0).to_pylist())
    return counts


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()[:32]


def summary(results: list[StageResult], questions: int, spent: float, **more: Any) -> dict[str, Any]:
    """construction.json (design §6)."""
    seconds = sum(result.seconds for result in results)
    return {
        "stages": [asdict(replace(result, seconds=round(result.seconds, 3))) | {"per_second": result.per_second} for result in results],
        "questions": questions,
        "seconds": seconds,
        "questions_per_hour": 3600 * questions / seconds if seconds else None,
        "cost_usd": spent,
        "cost_usd_per_1000_questions": 1000 * spent / questions if questions else None,
        **more,
    }


def _line(result: StageResult, there: bool) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(result.dropped.items(), key=lambda item: -item[1]))
    pace = "made before" if there else f"{result.seconds:.0f} s"
    return f"{result.file}: {result.taken} in, {result.made} out, {result.kept} kept{f' ({reasons})' if reasons else ''}, {pace}"
