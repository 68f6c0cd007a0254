"""The candidates under review, by key, without holding a stage in memory.

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

import pyarrow.parquet as pq

from mmsr_ray.data.construction.candidate import Candidate, from_table, key_of, read
from mmsr_ray.data.construction.review.verdicts import ReviewError

OWN = "_review.parquet"  # what a review writes; never what it reads
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


@dataclass(frozen=True, slots=True)
class Search:
    """One search of a rollout, as `Candidate.attempts` holds it."""

    tool: str
    query: str
    failure: str
    hits: list[dict[str, str]]  # title, url, summary


@dataclass(frozen=True, slots=True)
class Tried:
    """One rollout of the policy."""

    correct: bool | None
    answer: str
    image_searches: int
    text_searches: int
    searches: list[Search]


def attempts_of(text: str) -> list[Tried]:
    """The column `Candidate.attempts`; nothing where it is empty or of another make."""
    try:
        return [_tried(entry) for entry in json.loads(text)] if text else []
    except (ValueError, TypeError, AttributeError):  # written by other software; the page shows no attempts
        return []


def _tried(entry: dict[str, Any]) -> Tried:
    searches = [
        Search(
            tool=str(search.get("tool") or ""),
            query=str(search.get("query") or ""),
            failure=str(search.get("failure") or ""),
            hits=[{name: str(hit.get(name) or "") for name in ("title", "url", "summary")} for hit in search.get("hits") or ()],
        )
        for search in entry.get("searches") or ()
    ]
    correct, answer = entry.get("correct"), str(entry.get("answer") or "")
    counts = (int(entry.get("image_searches") or 0), int(entry.get("text_searches") or 0))
    return Tried(None if correct is None else bool(correct), answer, *counts, searches)
