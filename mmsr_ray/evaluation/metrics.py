"""What a set of evaluated questions says about a policy: accuracy, how much it searched, and whether it had to.

Promise: pure arithmetic over `TrajectorySummary`, one trajectory a question. A question that infrastructure broke is in
no numerator and no denominator; it is counted in `infra_errors`, so `questions + infra_errors` were asked.

Searching is judged call by call, over the questions whose need is known. A question needs at most one call of each kind:
image-required one image search, text-required one text search, mix-required one of each, search-free none.
- true positive: an executed call of a needed kind, the first of that kind;
- false positive: any other executed call (a kind that is not needed, or a second call of a needed one);
- false negative: a needed kind that was never called.
Precision is TP / (TP + FP), the share of calls that were needed; recall is TP / (TP + FN), the share of needed calls that
were made. Either is None where its denominator is 0, or where no need is known (any real benchmark).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmsr_ray.types import Need, Outcome, TrajectorySummary

NEEDED = {
    Need.SEARCH_FREE: (0, 0),
    Need.IMAGE: (1, 0),
    Need.TEXT: (0, 1),
    Need.MIX: (1, 1),
}
"""Calls that are needed and enough: (image, text)."""

Z95 = 1.959964  # two-sided 95 % of the normal distribution


def measure(summaries: Sequence[TrajectorySummary], *, name: str, split: str, search_limit: int, infra_errors: int = 0) -> dict[str, Any]:
    """One row of summary.json (design §6).

    `search_limit` is the number of searches allowed per question (2 in the paper); `infra_errors` counts questions that
    left no summary at all. Ratios lie in [0, 1] or are None where undefined. Keys beyond the design's: `infra_errors`,
    `accuracy_low` and `accuracy_high` (95 % Wilson interval), `reward`, `well_formed`, `tool_failures`, `behaviour` (Fig. 4b) and `by_need`.
    """
    if search_limit < 1:
        raise ValueError("search_limit must be at least 1: it is the denominator of the search ratio")
    scored = [s for s in summaries if s.outcome is not Outcome.INFRA_ERROR]
    correct = sum(s.correct for s in scored)
    low, high = wilson(correct, len(scored))
    precision, recall = search_quality(scored)
    return {
        "name": name,
        "split": split,
        "questions": len(scored),
        "accuracy": _ratio(correct, len(scored)),
        "search_ratio_calls": search_ratio_calls(scored, search_limit),
        "search_ratio_responses": search_ratio_responses(scored),
        "searches_per_question": searches_per_question(scored),
        "search_precision": precision,
        "search_recall": recall,
        "needed_search_ratio": needed_search_ratio(scored, search_limit),
        "accuracy_low": low,
        "accuracy_high": high,
        "infra_errors": infra_errors + len(summaries) - len(scored),
        "reward": _ratio(sum(s.reward for s in scored), len(scored)),
        "well_formed": _ratio(sum(s.well_formed for s in scored), len(scored)),
        "tool_failures": sum(s.tool_failures for s in scored),
        "behaviour": behaviour(scored),
        "by_need": {need.value: _of_need(scored, need) for need in Need if any(s.need is need for s in scored)},
    }


def calls(summary: TrajectorySummary) -> int:
    """Executed search calls of both kinds."""
    return summary.image_searches + summary.text_searches


def search_ratio_calls(summaries: Sequence[TrajectorySummary], search_limit: int) -> float | None:
    """Executed calls over allowed calls: the SR of the paper's Table 1."""
    return _ratio(sum(calls(s) for s in summaries), len(summaries) * search_limit)


def search_ratio_responses(summaries: Sequence[TrajectorySummary]) -> float | None:
    """Share of responses that search at least once: the SR of the paper's text."""
    return _ratio(sum(calls(s) > 0 for s in summaries), len(summaries))


def searches_per_question(summaries: Sequence[TrajectorySummary]) -> float | None:
    return _ratio(sum(calls(s) for s in summaries), len(summaries))


def search_quality(summaries: Sequence[TrajectorySummary]) -> tuple[float | None, float | None]:
    """(precision, recall) of search calls as the module's docstring defines them."""
    hits = made = needed = 0
    for s in summaries:
        if s.need is None:
            continue
        image, text = NEEDED[s.need]
        hits += min(s.image_searches, image) + min(s.text_searches, text)
        made += calls(s)
        needed += image + text
    return _ratio(hits, made), _ratio(hits, needed)


def needed_search_ratio(summaries: Sequence[TrajectorySummary], search_limit: int) -> float | None:
    """Needed calls over allowed calls, where the need is known: `search_ratio_calls` of a policy that searches exactly as needed."""
    known = [s.need for s in summaries if s.need is not None]
    return _ratio(sum(need.searches for need in known), len(known) * search_limit)


def behaviour(summaries: Sequence[TrajectorySummary]) -> dict[str, float | None]:
    """Shares of the four classes {correct, wrong} x {searched, not} (paper Fig. 4b); they sum to 1."""
    classes = {
        f"{'correct' if right else 'wrong'}_{'search' if searched else 'no_search'}": sum(
            s.correct == right and (calls(s) > 0) == searched for s in summaries
        )
        for right in (True, False)
        for searched in (True, False)
    }
    return {name: _ratio(count, len(summaries)) for name, count in classes.items()}


def wilson(successes: int, trials: int) -> tuple[float | None, float | None]:
    """95 % Wilson score interval of a proportion; (None, None) without trials. Unlike the normal one it stays in [0, 1]."""
    if trials == 0:
        return None, None
    p, z2 = successes / trials, Z95 * Z95
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def _of_need(summaries: Sequence[TrajectorySummary], need: Need) -> dict[str, float | int | None]:
    of = [s for s in summaries if s.need is need]
    precision, recall = search_quality(of)
    return {
        "questions": len(of),
        "accuracy": _ratio(sum(s.correct for s in of), len(of)),
        "search_ratio_responses": search_ratio_responses(of),
        "searches_per_question": searches_per_question(of),
        "image_searches_per_question": _ratio(sum(s.image_searches for s in of), len(of)),
        "text_searches_per_question": _ratio(sum(s.text_searches for s in of), len(of)),
        "searches_needed": need.searches,
        "search_precision": precision,
        "search_recall": recall,
    }


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None
