"""Settings of search balancing (spec §5.3 step 7). The paper's rule is the default."""

from __future__ import annotations

from dataclasses import dataclass

Z = 1.2816  # of a one-sided bound of 90 % confidence


@dataclass
class BalanceConfig:
    rollouts: int = 8  # of each question: k
    direct: int = 0  # so many of them get no tools; 0: the paper's way. For a policy that seldom tries to answer without
    min_survivors: int = 6  # rollouts that infrastructure must have left; with fewer a question is asked again
    asks: int = 3  # how often one submission asks a question that stays undecided
    min_support: int = 1  # right rollouts that a way of answering must have; 1: the paper's rule, where one lucky guess counts
    min_success: float = 0.0  # share of right rollouts that the label's way must reach with 90 % confidence; 0: the paper's rule
    required_per_free: float = 2.0  # search-required questions to one search-free in the set; 0: all that have a label
    questions: int = 0  # most questions in the set; 0: as many as the ratio allows
    deadline_seconds: float = 86_400.0  # of all rollouts of one submission


def in_words(c: BalanceConfig) -> str:
    """What a label rests on, for readers of the set."""
    parts = [f"{c.rollouts} rollouts a question" + (f", {c.direct} of them without tools" if c.direct else "")]
    if c.min_support > 1:
        parts.append(f"at least {c.min_support} right ones that searched as the label says")
    if c.min_success:
        parts.append(f"of those that searched so, with 90 % confidence more than {c.min_success:.0%} right")
    return "; ".join(parts)


def complaint(c: BalanceConfig) -> str:
    """What is impossible about these settings, and the remedy; "" when nothing is."""
    if not 1 <= c.min_survivors <= c.rollouts:
        return (
            f"construction.balance.min_survivors={c.min_survivors} must lie between 1 and construction.balance.rollouts={c.rollouts}: "
            "no question could be decided otherwise"
        )
    if not 0 <= c.direct < c.rollouts:
        return f"construction.balance.direct={c.direct} must be at least 0 and below construction.balance.rollouts={c.rollouts}: some must be free to search"
    if not 1 <= c.min_support <= c.min_survivors:
        return (
            f"construction.balance.min_support={c.min_support} must lie between 1 and construction.balance.min_survivors="
            f"{c.min_survivors}: rollouts that are missing support nothing"
        )
    if not 0 <= c.min_success <= (most := c.rollouts / (c.rollouts + Z * Z)):
        return (
            f"construction.balance.min_success={c.min_success} must lie between 0 and {most:.2f}: {c.rollouts} rollouts "
            "(construction.balance.rollouts) that are all right show no more"
        )
    if c.asks < 1:
        return "construction.balance.asks must be at least 1: it counts the first time too"
    if c.required_per_free < 0 or c.questions < 0:
        return "construction.balance.required_per_free and questions must be 0 (all) or more"
    if c.deadline_seconds <= 0:
        return "construction.balance.deadline_seconds must be positive"
    return ""
