"""How far two raters of yes and no agree. Pure.

Promise: every pair is in exactly one of the four cells, and what is undefined is None: agreement of nobody, and the kappa
of two raters who both only ever say the same thing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def agreement(pairs: Iterable[tuple[bool, bool]]) -> dict[str, Any]:
    """Of (first rater, second rater) pairs: `items`, the cells `both_yes`, `first_only`, `second_only` and `both_no`, and

    - `agreement`: share of items on which they say the same, in [0, 1];
    - `kappa`: (agreement - chance) / (1 - chance), where chance is the agreement of independent raters with the same shares of
      yes; in [-1, 1], at most the agreement (Cohen 1960, Educational and Psychological Measurement 20:37).
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
        "kappa": _kappa(both_yes, first_only, second_only, both_no),
    }


def _kappa(both_yes: int, first_only: int, second_only: int, both_no: int) -> float | None:
    """In whole numbers up to the last division, so that perfect agreement is 1 and not nearly 1."""
    items = both_yes + first_only + second_only + both_no
    by_chance = (both_yes + first_only) * (both_yes + second_only) + (both_no + second_only) * (both_no + first_only)
    possible = items * items - by_chance
    return (items * (both_yes + both_no) - by_chance) / possible if possible else None
