"""Two evaluations of the same questions, paired: where they differ, and which behaviour moved where. Writes nothing.

Promise: a pair is one question, of the same id and the same text, of which both sides kept an answer. Whatever infrastructure
broke on either side is a pair to look at and in no count of right and wrong.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import pyarrow.parquet as pq

from mmsr_ray.evaluation.classes import BEHAVIOURS, ERRORS
from mmsr_ray.evaluation.results import Evaluated
from mmsr_ray.evaluation.trajectories import StoredTrajectory, read_row_group
from mmsr_ray.observability.catalogue import Row, read_source

OUTCOMES = {
    "second": "only the second is right",
    "first": "only the first is right",
    "neither": "neither is right",
    "both": "both are right",
    "broken": "not judged",
}
"""What came of a pair, in the order in which pairs are worth a look."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One question, with its row number in each file and what is known of each answer."""

    numbers: tuple[int, int]
    first: Row
    second: Row

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`."""
        if self.first.behaviour is None or self.second.behaviour is None:
            return "broken"
        right = bool(self.first.correct), bool(self.second.correct)
        return {(True, True): "both", (True, False): "first", (False, True): "second", (False, False): "neither"}[right]


def pairs_of(first: Evaluated, second: Evaluated) -> list[Pair]:
    """In the order of `OUTCOMES`, within it in that of the first file; none where either kept no answers."""
    one, other = _numbered(first), _numbered(second)
    shared = [uid for uid in one if uid in other and first.questions[uid] == second.questions[uid]]
    pairs = [Pair((one[uid][0], other[uid][0]), one[uid][1], other[uid][1]) for uid in shared]
    return sorted(pairs, key=lambda pair: list(OUTCOMES).index(pair.outcome))


def moves(pairs: Sequence[Pair]) -> dict[str, dict[str, int]]:
    """Counts by behaviour class of the first side, then of the second: 4 x 4."""
    counts = Counter((pair.first.behaviour, pair.second.behaviour) for pair in pairs if pair.outcome != "broken")
    return {one: {other: counts[one, other] for other in BEHAVIOURS} for one in BEHAVIOURS}


def error_counts(pairs: Sequence[Pair]) -> dict[str, tuple[int, int]]:
    """By error type, of the first and of the second side."""
    first, second = Counter(pair.first.error for pair in pairs), Counter(pair.second.error for pair in pairs)
    return {error: (first[error], second[error]) for error in ERRORS}


class Episodes:
    """Whole trajectories of a file by their row number; only a few row groups are in memory."""

    def __init__(self, file: Path) -> None:
        metadata = pq.read_metadata(file)
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._starts = [0, *accumulate(sizes)]
        self._group = lru_cache(maxsize=2)(lambda number: read_row_group(file, number))

    def __getitem__(self, number: int) -> StoredTrajectory:
        group = bisect_right(self._starts, number) - 1
        return self._group(group)[number - self._starts[group]]


def _numbered(side: Evaluated) -> dict[str, tuple[int, Row]]:
    """(row number, row) by uid; empty where no answers were kept."""
    if side.file is None:
        return {}
    rows = read_source(side.file, side.file.parent).rows
    return {uid: (number, row) for number, (uid, row) in enumerate(zip(side.answers, rows, strict=True))}
