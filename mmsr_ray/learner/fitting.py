"""How large may a micro-batch be? A search over sizes, and what memory there is for it. Pure.

Promise: a size is tried only when what smaller ones needed says that it will fit, so that memory hardly ever runs out in
the search itself; what is returned was tried and fitted, or lies within a straight line through what was tried.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmsr_ray.learner.settings import LearnerConfig

PRECISION = 8  # the answer may miss the largest size by one part in this many


@dataclass(frozen=True, slots=True)
class Room:
    """Memory of one rank at rest, in bytes. Ranks of one `place` (a node, or one device of it) share what is free there."""

    place: str
    own: int  # in use by this rank
    free: int
    total: int
    later: int  # that this rank will take for good once training runs, whatever the micro-batch: optimiser state, caches


def budgets(rooms: Sequence[Room], share: float) -> list[int]:
    """Bytes that each rank may use at its peak, so that `share` of each place's memory is in use when all are at theirs."""
    sharers = Counter(room.place for room in rooms)
    return [room.own + math.floor((room.free - (1.0 - share) * room.total) / sharers[room.place]) - room.later for room in rooms]


def largest(need: Callable[[int], float | None], *, rest: float, budget: float, most: int, measured: int | None = None) -> int:
    """The largest size in 1..most whose need is within the budget, to one part in PRECISION; 0 when not even 1 fits.

    Sizes double until one does not fit, then the gap is bisected. A size whose need, on the straight line through the two
    largest sizes tried, exceeds the budget is not tried at all.

    Args:
        need: tries a size (1 first) and returns what it needs; None when it ran out of memory.
        rest: the need of size 0.
        measured: sizes above it are judged by the straight line alone; None: every size is tried.
    """
    known = {0: rest}

    def predicted(size: int) -> float:
        if len(known) == 1:
            return rest
        (small, low), (large, high) = sorted(known.items())[-2:]
        return high + max(high - low, 0.0) / (large - small) * (size - large)

    def fits(size: int) -> bool:
        if predicted(size) > budget:
            return False
        if measured is not None and size > max(measured, 1):
            return True
        found = need(size)
        if found is None:
            return False
        known[size] = found
        return found <= budget

    good, bad, size = 0, most + 1, 1
    while good < most:
        if not fits(size):
            bad = size
            break
        good, size = size, min(2 * size, most)
    while bad - good > max(1, good // PRECISION):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def advice(tokens: int, learner: LearnerConfig) -> str:
    """What to do when a micro-batch of `tokens` does not fit: the settings that still can help, cheapest first."""
    steps = [
        (not learner.gradient_checkpointing, "learner.gradient_checkpointing=true"),
        (not learner.fused, "learner.fused=true"),
        (learner.plain_layers > 0, "learner.plain_layers=0"),
        (learner.reference == "device" and learner.lora.rank == 0, "learner.reference=host"),
        (learner.offload == "none", "learner.offload=optimizer (with learner.zero_stage=3: all)"),
        (learner.zero_stage < 3, "learner.zero_stage=3"),
        (True, "more ranks (learner.world_size)"),
        (learner.lora.rank == 0, "adapters (learner.lora.rank)"),
        (True, "a lower agent.max_total_tokens"),
    ]
    told = [step for open_, step in steps if open_]
    return f"forward and backward of {tokens} tokens do not fit into memory: set, in this order, {', '.join(told[:-1])} or {told[-1]}"
