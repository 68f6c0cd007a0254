"""The paper's five findings as tests on measured numbers: what is claimed, when it holds, and what was seen.

Promise: pure, and the rule of each finding stands in its function. They were written before the numbers were, but for the first,
which was made stricter after one seed's weights had lost the form of RAG's answers. A finding holds when its rule is met with every seed; where it is met with some, it does not hold and the verdict says so. Numbers are kept by seed, with
their mean and the 95 % interval of the mean over seeds (Student's t). Where a finding does not hold, `reason` says what the
numbers say about why, and nothing more.

Sources: MMSearch-R1, Table 1, Fig. 4 and 5 (spec §6.5, §6.6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmsr_ray.evaluation.significance import over_seeds

Row = Mapping[str, Any]  # of evaluation.metrics.measure

FEWER_SEARCHES = 0.3  # finding 1: the paper has 32.9 %
TIE = 0.01  # finding 1: of accuracy
SETTLED = 0.1  # finding 5: how far from what is needed a search ratio may settle
ABOVE = 0.05  # finding 5: by how much the search ratio of an ablation must exceed the full recipe's
VARIANTS = ("full", "no penalty", "no balancing")


@dataclass(frozen=True, slots=True)
class Point:
    """One training step of one run: means over its rollouts, and on held-out questions where it was measured."""

    step: int
    reward: float
    search_ratio: float  # calls over allowed calls
    held_out: float | None = None  # the same on the held-out questions


@dataclass(frozen=True)
class SeedResults:
    """What one seed gave. `rows` by (run, when, workflow), such as ("full", "after RL", "rag")."""

    seed: int
    rows: Mapping[tuple[str, str, str], Row]
    curves: Mapping[str, Sequence[Point]]  # by variant
    reading: Mapping[tuple[str, str], Mapping[str, float]]  # by (run, when): skills inside the RAG workflow (atlas.reading)
    questions: Mapping[str, int]  # training questions by run

    def row(self, run: str, when: str, workflow: str) -> Row:
        return self.rows[run, when, workflow]


@dataclass(frozen=True)
class Number:
    """One quantity over the seeds, in their order. `unit` is "%" (per_seed are shares) or ""."""

    name: str
    per_seed: list[float | None]
    unit: str
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Finding:
    id: int
    claim: str
    held: bool
    verdict: str  # held | did not hold | held with some seeds
    numbers: list[Number]
    seeds: list[int]
    reason: str  # "" where it held


def number(name: str, per_seed: Sequence[float | None], unit: str = "%") -> Number:
    known = [value for value in per_seed if value is not None]
    over = over_seeds(known) if known else {"mean": None, "low": None, "high": None}
    return Number(name, list(per_seed), unit, over["mean"], over["low"], over["high"])


def findings(results: Sequence[SeedResults]) -> list[Finding]:
    """All five. Raises KeyError where a run is missing, ValueError without seeds."""
    if not results:
        raise ValueError("findings need at least one seed")
    return [test(results) for test in (_fewer_searches, _better_inside_rag, _more_without_search, _rl_against_sft, _what_holds_back)]


def as_dict(finding: Finding) -> dict[str, Any]:
    """As findings.json has it (design §6)."""
    return asdict(finding)


def _finding(
    number_of_it: int, claim: str, met: Sequence[bool], results: Sequence[SeedResults], numbers: list[Number], reason: str
) -> Finding:
    verdict = "held" if all(met) else "held with some seeds" if any(met) else "did not hold"
    return Finding(number_of_it, claim, all(met), verdict, numbers, [r.seed for r in results], "" if all(met) else reason)


def _over(results: Sequence[SeedResults], value: Callable[[SeedResults], float]) -> list[float | None]:
    return [value(result) for result in results]


# ---------------------------------------------------------------------------------------------------- the five


def _fewer_searches(results: Sequence[SeedResults]) -> Finding:
    """Holds where on demand is at most TIE less accurate than RAG, with FEWER_SEARCHES fewer calls. RAG is the better of two: the
    model before RL, as in the paper's table, and the same weights, their answers taken in substance, because RL may spoil their form."""

    def own(r: SeedResults) -> Row:
        return r.row("full", "after RL", "on_demand")

    def same_weights(r: SeedResults) -> float:
        return r.reading["full", "after RL"]["right in substance"]

    def base(r: SeedResults) -> float:
        return r.row("full", "before RL", "rag")["accuracy"]

    def saved(r: SeedResults) -> float:
        return 1 - own(r)["searches_per_question"] / r.row("full", "after RL", "rag")["searches_per_question"]

    met = [own(r)["accuracy"] >= max(base(r), same_weights(r)) - TIE and saved(r) >= FEWER_SEARCHES for r in results]
    numbers = [
        number("accuracy on demand, after RL", _over(results, lambda r: own(r)["accuracy"])),
        number("accuracy of the model before RL under RAG", _over(results, base)),
        number(
            "accuracy of the same weights under RAG, exact match", _over(results, lambda r: r.row("full", "after RL", "rag")["accuracy"])
        ),
        number("accuracy of the same weights under RAG, in substance", _over(results, same_weights)),
        number("searches saved against RAG", _over(results, saved)),
    ]
    claim = "RL on demand beats or ties the same model under RAG in accuracy, with at least 30 % fewer searches."
    return _finding(1, claim, met, results, numbers, "Accuracy or saving of some seed above falls short of the rule.")


def _better_inside_rag(results: Sequence[SeedResults]) -> Finding:
    """Holds where, inside the RAG workflow, accuracy rises by RL, and so do the share of queries that find the right page and of
    answers that say what the page says. Judged on the run that starts from a warm start cut short, which has room to improve."""

    def skill(name: str, run: str, when: str) -> Callable[[SeedResults], float]:
        return lambda r: r.reading[run, when][name]

    def accuracy(run: str, when: str) -> Callable[[SeedResults], float]:
        return lambda r: r.row(run, when, "rag")["accuracy"]

    before, after = ("early", "before RL"), ("early", "after RL")
    met = [
        accuracy(*after)(r) > accuracy(*before)(r)
        and all(skill(name, *after)(r) >= skill(name, *before)(r) for name in ("finds the page", "says what it says"))
        for r in results
    ]
    numbers = [
        number(f"{label}, {when}{base}", _over(results, value(run, when)))
        for run, base in (("early", " (base: warm start cut short)"), ("full", " (base: whole warm start)"))
        for label, value in (
            ("accuracy under RAG", accuracy),
            ("queries that find the right page", lambda run, when: skill("finds the page", run, when)),
            ("answers that say what the page says", lambda run, when: skill("says what it says", run, when)),
            ("accuracy in substance", lambda run, when: skill("right in substance", run, when)),
        )
        for when in ("before RL", "after RL")
    ]
    numbers.append(number("most that RAG can reach: the web is wrong about the rest", _over(results, skill("most", "full", "before RL"))))
    claim = "RL improves query writing and the use of results inside the fixed RAG workflow."
    reason = (
        "Queries find the right page before and after. What falls is the answer: RL trains the grammar of on demand alone, and inside RAG "
        "the policy goes on in it (value</reason><answer>value</answer>), which exact match refuses; in substance it loses less, but "
        "gains nothing. The whole warm start already reads as well as the web allows; the short one unlearns reading where RL finds "
        "that answering unread pays more. A policy of a million parameters has nothing that carries over from one form to the other."
    )
    return _finding(2, claim, met, results, numbers, reason)


def _more_without_search(results: Sequence[SeedResults]) -> Finding:
    """Holds where the share of responses that are correct without a search is larger after RL than before, on demand."""

    def share(when: str) -> Callable[[SeedResults], float]:
        return lambda r: r.row("full", when, "on_demand")["behaviour"]["correct_no_search"]

    met = [share("after RL")(r) > share("before RL")(r) for r in results]
    numbers = [number(f"correct without search, {when}", _over(results, share(when))) for when in ("before RL", "after RL")]
    claim = "Correct answers without a search become more."
    return _finding(3, claim, met, results, numbers, "The policy searches where it knew, or forgot what it knew.")


def _rl_against_sft(results: Sequence[SeedResults]) -> Finding:
    """Holds where RL is more accurate on demand than SFT on either teacher's trajectories, with about half of their questions."""
    teachers = sorted(run for run in results[0].questions if run.startswith("sft"))

    def accuracy(run: str) -> Callable[[SeedResults], float]:
        return lambda r: r.row(run, "after SFT", "on_demand")["accuracy"]

    def own(r: SeedResults) -> float:
        return r.row("full", "after RL", "on_demand")["accuracy"]

    met = [all(own(r) > accuracy(run)(r) for run in teachers) for r in results]
    numbers = [number("accuracy after RL", _over(results, own))]
    numbers += [number(f"accuracy after {run}", _over(results, accuracy(run))) for run in teachers]
    numbers += [
        number(f"training questions, {run}", _over(results, lambda r, run=run: float(r.questions[run])), "") for run in ("full", *teachers)
    ]
    beaten = [run for run in teachers if all(own(r) > accuracy(run)(r) for r in results)]
    reason = (
        f"RL beats {' and '.join(beaten) or 'neither'} with every seed. An oracle that knows what the policy knows shows it the very "
        "decisions that RL has to find; no teacher of the paper could, for GPT-4o's knowledge is not the policy's."
    )
    return _finding(4, "RL beats SFT with about half the data.", met, results, numbers, reason)


def _what_holds_back(results: Sequence[SeedResults]) -> Finding:
    """Holds where the full recipe's search ratio settles within SETTLED of what is needed, and each ablation's ABOVE the full one's.

    Settled means: on the held-out questions, after the last step. "Towards 1" is read off the numbers, they are given.
    """

    def ratio(variant: str) -> Callable[[SeedResults], float]:
        return lambda r: r.row(variant, "after RL", "on_demand")["search_ratio_calls"]

    def needed(r: SeedResults) -> float:
        return r.row("full", "after RL", "on_demand")["needed_search_ratio"]

    full = ratio("full")
    met = [abs(full(r) - needed(r)) <= SETTLED and all(ratio(v)(r) >= full(r) + ABOVE for v in VARIANTS[1:]) for r in results]
    numbers = [number("searches over allowed that are needed", _over(results, needed))]
    for variant in VARIANTS:
        numbers.append(number(f"searches over allowed, {variant}", _over(results, ratio(variant))))
        numbers.append(number(f"accuracy, {variant}", _over(results, lambda r, v=variant: r.row(v, "after RL", "on_demand")["accuracy"])))
    short = [v for v in VARIANTS[1:] if not all(ratio(v)(r) >= full(r) + ABOVE for r in results)]
    reason = f"Not above the full recipe with every seed: {', '.join(short) or 'none'}."
    claim = "Without search balancing, or without the penalty, the search ratio rises towards 1; with both it settles near what is needed."
    return _finding(5, claim, met, results, numbers, reason)
