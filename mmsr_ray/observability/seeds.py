"""One quantity over the seeds of an experiment. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, lowest and highest of the seeds: with three of them, an interval that assumes nothing."""

    mean: float
    low: float
    high: float


def spread(values: Sequence[float | None]) -> Spread | None:
    """Over the seeds that have the number; None where none has it."""
    known = [value for value in values if value is not None]
    return Spread(sum(known) / len(known), min(known), max(known)) if known else None
