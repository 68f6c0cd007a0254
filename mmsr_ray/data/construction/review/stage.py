"""The candidates under review, by key, and what the policy made of them, without holding a stage in memory.

Promise: only candidates that are still kept are reviewed. `content_of` changes exactly when something changes that a verdict rests
on: picture, page, question, answers. What came later (attempts, need, category) changes no verdict.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmsr_ray.data.construction.candidate import Candidate, from_table, key_of, read
from mmsr_ray.data.construction.review.verdicts import ReviewError
from mmsr_ray.data.schema import DataError
from mmsr_ray.evaluation.trajectories import StoredTrajectory, read_row_group

OWN = "_review.parquet"  # what a review writes; never what it reads
TRAJECTORIES = "trajectories"
GROUPS_HELD = 2  # row groups of candidates in memory


def newest_stage(run: Path) -> Path:
    """The last stage file of a run folder (NN_<stage>.parquet) before review. Raises ReviewError when there is none."""
    files = sorted(file for file in run.glob("[0-9][0-9]_*.parquet") if not file.name.endswith(OWN))
    if not files:
        raise ReviewError(f"{run} holds no stage file (NN_<stage>.parquet): run jobs/build_fvqa.py first, or name a file with --stage")
    return files[-1]


def content_of(candidate: Candidate) -> str:
    """Hash of what reviewers judge."""
    c = candidate
    return key_of(c.image, c.page_url, c.page_title, c.page_text, c.question, c.answer, json.dumps(c.aliases))


def fingerprint(contents: Mapping[str, str]) -> str:
    """Hash of a set of candidates, key -> content; their order does not matter."""
    return hashlib.sha256(json.dumps(sorted(contents.items())).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Difference:
    """Between the candidates that decisions were made about and those that are here, by key."""

    missing: int  # there, not here
    changed: int  # the same key with another content
    new: int  # here, not there

    def __bool__(self) -> bool:
        return bool(self.missing or self.changed or self.new)

    def __str__(self) -> str:
        return f"{self.missing} of its candidates are not here, {self.changed} have another content here, {self.new} are new here"


def difference(there: Mapping[str, str], here: Mapping[str, str]) -> Difference:
    return Difference(
        missing=len(there.keys() - here.keys()),
        changed=sum(key in here and here[key] != content for key, content in there.items()),
        new=len(here.keys() - there.keys()),
    )


class Stage:
    """Kept candidates of one stage file; `contents` in the file's order. Not for several threads at once.

    Reads the file through once. Raises DataError where it is no stage file, ReviewError where a key occurs twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.contents: dict[str, str] = {}
        self._rows: dict[str, int] = {}
        for row, candidate in enumerate(read(path)):
            if candidate.key in self._rows:
                raise ReviewError(f"{path} holds the candidate {candidate.key} twice: run its stage again")
            self._rows[candidate.key] = row
            if candidate.kept:
                self.contents[candidate.key] = content_of(candidate)
        self._file = pq.ParquetFile(path)
        sizes = [self._file.metadata.row_group(n).num_rows for n in range(self._file.metadata.num_row_groups)]
        self._starts = [0, *accumulate(sizes)]
        self._held: OrderedDict[int, list[Candidate]] = OrderedDict()

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.contents)

    def get(self, key: str) -> Candidate:
        """Raises KeyError for a key that is not under review."""
        if key not in self.contents:
            raise KeyError(key)
        row = self._rows[key]
        group = bisect_right(self._starts, row) - 1
        return self._group(group)[row - self._starts[group]]

    def _group(self, number: int) -> list[Candidate]:
        if number not in self._held:
            self._held[number] = from_table(self._file.read_row_group(number))
            while len(self._held) > GROUPS_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]

    def close(self) -> None:
        self._file.close()


class Attempts:
    """Stored rollouts of a run folder by the candidate they were about; none where the folder has none."""

    def __init__(self, run: Path) -> None:
        self._rows: dict[str, list[tuple[Path, int, int]]] = {}
        for file in sorted((run / TRAJECTORIES).glob("*.parquet")):
            self._index(file)

    def _index(self, file: Path) -> None:
        try:
            with pq.ParquetFile(file) as parquet:
                for group in range(parquet.num_row_groups):
                    for row, uid in enumerate(parquet.read_row_group(group, columns=["uid"]).column("uid").to_pylist()):
                        self._rows.setdefault(uid, []).append((file, group, row))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read the trajectories {file} ({error}): move the file away") from error

    def of(self, key: str, most: int) -> list[StoredTrajectory]:
        """At most `most` rollouts."""
        groups: dict[tuple[Path, int], list[StoredTrajectory]] = {}
        found = []
        for file, group, row in self._rows.get(key, [])[:most]:
            if (file, group) not in groups:
                groups[file, group] = read_row_group(file, group)
            found.append(groups[file, group][row])
        return found


def counted(attempts: str) -> list[dict[str, Any]]:
    """The column `Candidate.attempts` as dictionaries; nothing where it is empty or of another make."""
    try:
        found = json.loads(attempts) if attempts else []
    except ValueError:  # written by other software; the page shows no attempts
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
