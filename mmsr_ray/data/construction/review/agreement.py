"""How far a review has come, and how far its annotators agree. Pure.

Agreement is about first looks alone, which are blind; the categories are accept, edit and reject (what an edit says decides about
disputes, not about kappa). A kappa near 0 is what chance gives; who rates differently often is seen in the table of pairs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from mmsr_ray.data.construction.review.verdicts import Decision, State, Verdict
from mmsr_ray.evaluation.kappa import cohen, fleiss


@dataclass(frozen=True, slots=True)
class Pair:
    """Two annotators on the candidates that both took a first look at."""

    first: str
    second: str
    items: int
    agreement: float  # share with the same verdict
    kappa: float | None  # Cohen's


@dataclass(frozen=True, slots=True)
class Progress:
    """What one annotator did; undone decisions do not count."""

    annotator: str
    first_looks: int
    second_looks: int
    verdicts: dict[str, int]
    seconds: float | None  # median per decision, of those whose time is known


@dataclass(frozen=True, slots=True)
class Overview:
    candidates: int
    reviewers: int  # first looks per candidate
    states: dict[str, int]  # of State
    verdicts: dict[str, int]  # of settled candidates
    reasons: dict[str, int]  # of settled rejections, most frequent first
    progress: list[Progress]
    pairs: list[Pair]
    fleiss: float | None
    fleiss_items: int  # candidates with exactly `reviewers` first looks

    @property
    def rule(self) -> str:
        return f"{self.reviewers} people look at each candidate; where they differ, a second look by somebody else decides."


def overview(
    outcomes: Iterable[tuple[str, State, Decision | None, Sequence[Decision]]], annotators: Sequence[str], reviewers: int
) -> Overview:
    """Of (key, state, deciding decision, current decisions), as `Store.outcomes` gives them."""
    states, verdicts, reasons = Counter[str](dict.fromkeys(State, 0)), Counter[str](), Counter[str]()
    by_annotator: dict[str, list[Decision]] = {name: [] for name in annotators}
    by_pair: defaultdict[tuple[str, str], list[tuple[Verdict, Verdict]]] = defaultdict(list)
    rated: list[list[Verdict]] = []
    for _, state, deciding, decisions in outcomes:
        states[state.value] += 1
        if deciding is not None:
            verdicts[deciding.verdict.value] += 1
            reasons.update([deciding.reason] if deciding.verdict is Verdict.REJECT else [])
        for decision in decisions:
            by_annotator.setdefault(decision.annotator, []).append(decision)
        first = sorted((d for d in decisions if d.look == 1), key=lambda d: d.annotator)
        for one, other in combinations(first, 2):
            by_pair[one.annotator, other.annotator].append((one.verdict, other.verdict))
        if len(first) == reviewers:
            rated.append([d.verdict for d in first])
    return Overview(
        candidates=states.total(),
        reviewers=reviewers,
        states=dict(states),
        verdicts=dict(verdicts),
        reasons=dict(reasons.most_common()),
        progress=[_progress(name, decisions) for name, decisions in sorted(by_annotator.items())],
        pairs=[_pair(names, both) for names, both in sorted(by_pair.items())],
        fleiss=fleiss(rated) if reviewers > 1 else None,
        fleiss_items=len(rated) if reviewers > 1 else 0,
    )


def _progress(name: str, decisions: Sequence[Decision]) -> Progress:
    timed = [d.seconds for d in decisions if d.seconds > 0]
    second = sum(d.look == 2 for d in decisions)
    verdicts = dict(Counter(d.verdict.value for d in decisions))
    return Progress(name, len(decisions) - second, second, verdicts, median(timed) if timed else None)


def _pair(names: tuple[str, str], both: Sequence[tuple[Verdict, Verdict]]) -> Pair:
    return Pair(*names, len(both), sum(one == other for one, other in both) / len(both), cohen(both))
