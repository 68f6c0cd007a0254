"""How far raters agree beyond chance: two of yes and no, two of any categories (Cohen), any number (Fleiss). Pure.

Promise: every pair is in exactly one of the four cells, and what is undefined is None: agreement of nobody, and the kappa
of raters who all only ever say the same thing. Kappas are computed in whole numbers up to the last division, so that perfect
agreement is 1 and not nearly 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any


def agreement(pairs: Iterable[tuple[bool, bool]]) -> dict[str, Any]:
    """Of (first rater, second rater) pairs: `items`, the cells `both_yes`, `first_only`, `second_only` and `both_no`, and

    - `agreement`: share of items on which they say the same, in [0, 1];
    - `kappa`: as `cohen`.
    """
    cells = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for pair in pairs:
        cells[pair] += 1
    both_yes, first_only, second_only, both_no = cells.values()
    items = sum(cells.values())
    return {
        "items": items,
        "both_yes": both_yes,
        "first_only": first_only,
        "second_only": second_only,
        "both_no": both_no,
        "agreement": (both_yes + both_no) / items if items else None,
        "kappa": _cohen(cells),
    }


def cohen(pairs: Iterable[tuple[Hashable, Hashable]]) -> float | None:
    """Kappa of (first rater, second rater) pairs of unordered categories: (agreement - chance) / (1 - chance), where chance is the
    agreement of independent raters with the same shares of each category; in [-1, 1], at most the agreement (Cohen 1960,
    Educational and Psychological Measurement 20:37)."""
    return _cohen(Counter(pairs))


def fleiss(items: Iterable[Sequence[Hashable]]) -> float | None:
    """Kappa of any number of raters: each item is the categories that its raters gave it, in any order and by whomever, equally
    many (n >= 2) for all items; in [-1 / (n - 1), 1] (Fleiss 1971, Psychological Bulletin 76:378).

    Raises ValueError where items have different numbers of raters, or fewer than two.
    """
    raters, number, same, totals = 0, 0, 0, Counter()
    for given in items:
        raters = raters or len(given)
        if len(given) != raters or raters < 2:
            raise ValueError(f"Fleiss' kappa needs equally many raters for all items, at least two: found {raters} and {len(given)}")
        counts = Counter(given)
        number += 1
        same += sum(count * (count - 1) for count in counts.values())
        totals.update(counts)
    ratings = number * raters
    by_chance = sum(total * total for total in totals.values())
    possible = (raters - 1) * (ratings * ratings - by_chance)
    return (same * ratings - by_chance * (raters - 1)) / possible if possible else None


def _cohen(cells: dict[Any, int]) -> float | None:
    """Of the counts of (first, second) pairs."""
    first, second = Counter[Any](), Counter[Any]()
    for (one, other), count in cells.items():
        first[one] += count
        second[other] += count
    items = sum(cells.values())
    agreed = sum(count for (one, other), count in cells.items() if one == other)
    by_chance = sum(count * second[category] for category, count in first.items())
    possible = items * items - by_chance
    return (items * agreed - by_chance) / possible if possible else None
