"""Are two runs on the same questions different, and by how much? And how far do a few seeds spread? Pure.

Promise: only questions that both runs answered count; one that a run never asked, or that infrastructure broke in either, is
left out and counted. Every interval contains its estimate, the tests are two-sided, and the same input gives the same numbers.

- p value: McNemar's test, exact: the binomial test of the questions that just one run gets right (McNemar 1947, Psychometrika
  12:153). The smallest p that d such questions allow is 2^(1-d), so few questions never show a difference.
- interval of the difference in accuracy: Newcombe's hybrid score interval for paired proportions, his method 10 without
  continuity correction (Newcombe 1998, Statistics in Medicine 17:2635). Unlike the normal one it stays in [-1, 1] and does not
  collapse when no question differs.
- interval of the difference of search ratios, whose parts are counts: paired percentile bootstrap over questions (Efron and
  Tibshirani 1993, chapter 13), `RESAMPLES` resamples from a fixed seed.
- over seeds: Student's t interval of the mean, which presumes that seeds vary normally; of three it is wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from mmsr_ray.evaluation.metrics import wilson
from mmsr_ray.evaluation.trajectories import StoredTrajectory
from mmsr_ray.types import Outcome, TrajectorySummary

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Result:
    """What one run made of one question. `correct` is None where infrastructure broke it."""

    uid: str
    correct: bool | None
    searches: int = 0


def of_summaries(summaries: Iterable[TrajectorySummary]) -> list[Result]:
    return [Result(s.uid, None if s.outcome is Outcome.INFRA_ERROR else s.correct, s.image_searches + s.text_searches) for s in summaries]


def of_stored(rows: Iterable[StoredTrajectory]) -> list[Result]:
    """Of one evaluation's parquet file."""
    return [
        Result(row.uid, None if row.outcome == Outcome.INFRA_ERROR.value else row.correct, sum(turn.tool is not None for turn in row.turns))
        for row in rows
    ]


def compare(first: Iterable[Result], second: Iterable[Result], *, search_limit: int) -> dict[str, Any]:
    """The second run against the first, on one benchmark; differences are second minus first. Plain values for JSON.

    `search_limit` is the number of searches allowed per question. Keys: `questions` in common; `left_out` with `only_first`,
    `only_second` and `broken`; `both_right`, `first_only`, `second_only`, `both_wrong`; `p_value`; and each with `first`, `second`,
    `difference`, `low` and `high` (95 %): `accuracy`, `search_ratio_calls`, `search_ratio_responses`. Without questions in common
    all of them are None. Raises ValueError where a run holds a uid twice.
    """
    one, other = _by_uid(first, "first"), _by_uid(second, "second")
    shared = [(one[uid], other[uid]) for uid in sorted(one.keys() & other.keys())]
    pairs = [(a, b) for a, b in shared if a.correct is not None and b.correct is not None]
    right = [(bool(a.correct), bool(b.correct)) for a, b in pairs]
    cells = [right.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False))]
    low, high = difference_interval(*cells)
    calls = np.array([(a.searches, b.searches) for a, b in pairs], np.float64).reshape(-1, 2)
    return {
        "questions": len(pairs),
        "left_out": {"only_first": len(one) - len(shared), "only_second": len(other) - len(shared), "broken": len(shared) - len(pairs)},
        **dict(zip(("both_right", "first_only", "second_only", "both_wrong"), cells, strict=True)),
        "p_value": mcnemar(cells[1], cells[2]) if pairs else None,
        "accuracy": _difference(np.array(right, np.float64).reshape(-1, 2)) | {"low": low, "high": high},
        "search_ratio_calls": _with_bootstrap(calls / search_limit),
        "search_ratio_responses": _with_bootstrap((calls > 0).astype(np.float64)),
    }


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided exact p value of the counts of questions that just one run gets right, in (0, 1]; 1 where there are none."""
    differing = first_only + second_only
    return float(stats.binomtest(first_only, differing, 0.5).pvalue) if differing else 1.0


def difference_interval(both_right: int, first_only: int, second_only: int, both_wrong: int) -> tuple[float | None, float | None]:
    """95 % interval of accuracy of the second minus that of the first, by Newcombe's method 10; (None, None) without questions."""
    n = both_right + first_only + second_only + both_wrong
    if not n:
        return None, None
    p1, p2 = (both_right + first_only) / n, (both_right + second_only) / n
    l1, u1 = _wilson(both_right + first_only, n)
    l2, u2 = _wilson(both_right + second_only, n)
    phi = _phi(both_right, first_only, second_only, both_wrong)
    below = _hybrid(p2 - l2, u1 - p1, phi)
    above = _hybrid(u2 - p2, p1 - l1, phi)
    return max(-1.0, p2 - p1 - below), min(1.0, p2 - p1 + above)


def over_seeds(values: Sequence[float]) -> dict[str, float | int | None]:
    """`seeds`, `mean`, and `low` and `high` of its 95 % t interval, which need two seeds. Raises ValueError without any."""
    if not values:
        raise ValueError("an interval over seeds needs at least one value")
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return {"seeds": 1, "mean": mean, "low": None, "high": None}
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return {"seeds": n, "mean": mean, "low": mean - half, "high": mean + half}


def _by_uid(results: Iterable[Result], which: str) -> Mapping[str, Result]:
    by_uid: dict[str, Result] = {}
    for result in results:
        if result.uid in by_uid:
            raise ValueError(f"the {which} run holds question {result.uid} twice: compare one workflow on one benchmark at a time")
        by_uid[result.uid] = result
    return by_uid


def _wilson(successes: int, n: int) -> tuple[float, float]:
    """With limits that rounding cannot push past the estimate."""
    low, high = wilson(successes, n)
    assert low is not None and high is not None, "n is positive here"
    return min(low, successes / n), max(high, successes / n)


def _phi(both_right: int, first_only: int, second_only: int, both_wrong: int) -> float:
    """Correlation of the runs' outcomes with Newcombe's correction for continuity of a positive one; 0 where a run is constant."""
    n = both_right + first_only + second_only + both_wrong
    margins = (both_right + first_only) * (second_only + both_wrong) * (both_right + second_only) * (first_only + both_wrong)
    if not margins:
        return 0.0
    cross = both_right * both_wrong - first_only * second_only
    if cross > 0:
        cross = max(cross - n / 2, 0)
    return cross / math.sqrt(margins)


def _hybrid(one: float, other: float, phi: float) -> float:
    """Length of the difference of two vectors whose angle has the cosine phi."""
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _difference(values: np.ndarray) -> dict[str, float | None]:
    """`values`: float64 [questions, 2]."""
    if not len(values):
        return {"first": None, "second": None, "difference": None}
    first, second = values.mean(axis=0)
    return {"first": float(first), "second": float(second), "difference": float(second - first)}


def _with_bootstrap(values: np.ndarray) -> dict[str, float | None]:
    """`values`: float64 [questions, 2]."""
    found = _difference(values)
    if found["difference"] is None:
        return found | {"low": None, "high": None}
    distinct, counts = np.unique(values[:, 1] - values[:, 0], return_counts=True)
    n = len(values)
    drawn = np.random.default_rng(0).multinomial(
        n, counts / n, RESAMPLES
    )  # how often each value is in a resample: few values, many questions
    low, high = np.quantile(drawn @ distinct / n, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return found | {"low": min(float(low), found["difference"]), "high": max(float(high), found["difference"])}
