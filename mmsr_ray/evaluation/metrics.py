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

from mmsr_ray.evaluation.expenses import per_question, ratio, tool_use
from mmsr_ray.evaluation.kappa import agreement
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
    `accuracy_low` and `accuracy_high` (95 % Wilson interval), `reward`, `well_formed`, `tool_failures` (calls of scored questions
    without a hit: nothing found), `behaviour` (Fig. 4b), `paths` and `by_need`; `exact_match` and `sub_match` (shares of questions, whoever
    decides `accuracy`); `judge` (`judge_report`, {} where nothing was judged); `tools` and `per_question` (`expenses`); `by_source` and
    `by_category` (`_of_kind` of each, {} unless there are several).
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
        "accuracy": ratio(correct, len(scored)),
        "search_ratio_calls": search_ratio_calls(scored, search_limit),
        "search_ratio_responses": search_ratio_responses(scored),
        "searches_per_question": searches_per_question(scored),
        "search_precision": precision,
        "search_recall": recall,
        "needed_search_ratio": needed_search_ratio(scored, search_limit),
        "accuracy_low": low,
        "accuracy_high": high,
        "infra_errors": infra_errors + len(summaries) - len(scored),
        "reward": ratio(sum(s.reward for s in scored), len(scored)),
        "well_formed": ratio(sum(s.well_formed for s in scored), len(scored)),
        "tool_failures": sum(s.tool_failures for s in scored),
        "behaviour": behaviour(scored),
        "paths": paths(scored),
        "by_need": {need.value: _of_need(scored, need) for need in Need if any(s.need is need for s in scored)},
        "exact_match": ratio(sum(s.em for s in scored), len(scored)),
        "sub_match": ratio(sum(s.subem for s in scored), len(scored)),
        "judge": judge_report(scored),
        "tools": tool_use(scored, summaries, search_limit),
        "per_question": per_question(scored, summaries),
        "by_source": _by_kind(scored, [s.source for s in scored], search_limit),
        "by_category": _by_kind(scored, [s.category or "" for s in scored], search_limit),
    }


def calls(summary: TrajectorySummary) -> int:
    """Executed search calls of both kinds."""
    return summary.image_searches + summary.text_searches


def search_ratio_calls(summaries: Sequence[TrajectorySummary], search_limit: int) -> float | None:
    """Executed calls over allowed calls: the SR of the paper's Table 1."""
    return ratio(sum(calls(s) for s in summaries), len(summaries) * search_limit)


def search_ratio_responses(summaries: Sequence[TrajectorySummary]) -> float | None:
    """Share of responses that search at least once: the SR of the paper's text."""
    return ratio(sum(calls(s) > 0 for s in summaries), len(summaries))


def searches_per_question(summaries: Sequence[TrajectorySummary]) -> float | None:
    return ratio(sum(calls(s) for s in summaries), len(summaries))


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
    return ratio(hits, made), ratio(hits, needed)


def needed_search_ratio(summaries: Sequence[TrajectorySummary], search_limit: int) -> float | None:
    """Needed calls over allowed calls, where the need is known: `search_ratio_calls` of a policy that searches exactly as needed."""
    known = [s.need for s in summaries if s.need is not None]
    return ratio(sum(need.searches for need in known), len(known) * search_limit)


def behaviour(summaries: Sequence[TrajectorySummary]) -> dict[str, float | None]:
    """Shares of the four classes {correct, wrong} x {searched, not} (paper Fig. 4b); they sum to 1."""
    classes = {
        f"{'correct' if right else 'wrong'}_{'search' if searched else 'no_search'}": sum(
            s.correct == right and (calls(s) > 0) == searched for s in summaries
        )
        for right in (True, False)
        for searched in (True, False)
    }
    return {name: ratio(count, len(summaries)) for name, count in classes.items()}


def paths(summaries: Sequence[TrajectorySummary]) -> dict[str, dict[str, float | None]]:
    """Share and accuracy of the questions by the tools that were called: none, image, text, both. Shares sum to 1.

    A policy that knows only some of the paths shows it here, and not in its search ratio.
    """
    called = [(s.image_searches > 0, s.text_searches > 0) for s in summaries]
    found = {}
    for name, path in {"none": (False, False), "image": (True, False), "text": (False, True), "both": (True, True)}.items():
        of = [s for s, tools in zip(summaries, called, strict=True) if tools == path]
        found[name] = {"share": ratio(len(of), len(summaries)), "accuracy": ratio(sum(s.correct for s in of), len(of))}
    return found


def judge_report(summaries: Sequence[TrajectorySummary]) -> dict[str, Any]:
    """`judged`: answers with a verdict; `yes`: share of them that the judge accepts; `em` and `subem`: agreement of the judge, as
    first rater, with exact match and SubEM on them (`kappa.agreement`). {} where there is no verdict.

    Without `evaluation.judge_all` the judge sees only what the rule rejects, and these numbers are about such answers alone.
    """
    verdicts = [(s.judged, s.em, s.subem) for s in summaries if s.judged is not None]
    if not verdicts:
        return {}
    return {
        "judged": len(verdicts),
        "yes": ratio(sum(yes for yes, _, _ in verdicts), len(verdicts)),
        "em": agreement((yes, em) for yes, em, _ in verdicts),
        "subem": agreement((yes, subem) for yes, _, subem in verdicts),
    }


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
        "accuracy": ratio(sum(s.correct for s in of), len(of)),
        "search_ratio_responses": search_ratio_responses(of),
        "searches_per_question": searches_per_question(of),
        "image_searches_per_question": ratio(sum(s.image_searches for s in of), len(of)),
        "text_searches_per_question": ratio(sum(s.text_searches for s in of), len(of)),
        "searches_needed": need.searches,
        "search_precision": precision,
        "search_recall": recall,
    }


def _by_kind(summaries: Sequence[TrajectorySummary], kinds: Sequence[str], search_limit: int) -> dict[str, dict[str, Any]]:
    """`_of_kind` of the questions of each kind, by name; "" is those that name none. {} unless there are several kinds."""
    names = sorted(set(kinds))
    if len(names) < 2:
        return {}
    of = {name: [s for s, kind in zip(summaries, kinds, strict=True) if kind == name] for name in names}
    return {name: _of_kind(of[name], search_limit) for name in names}


def _of_kind(of: Sequence[TrajectorySummary], search_limit: int) -> dict[str, Any]:
    correct = sum(s.correct for s in of)
    low, high = wilson(correct, len(of))
    return {
        "questions": len(of),
        "accuracy": ratio(correct, len(of)),
        "accuracy_low": low,
        "accuracy_high": high,
        "search_ratio_calls": search_ratio_calls(of, search_limit),
        "search_ratio_responses": search_ratio_responses(of),
        "behaviour": behaviour(of),
    }
