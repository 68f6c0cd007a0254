"""Who trains what: the cut of a rollout batch into mini-batches, ranks and micro-batches. Pure.

Promise: every rank has the same number of micro-batches in a mini-batch (collectives line up), every item is in the
plan once, and the plan depends on its arguments alone. Ranks are given like amounts of work, and of their micro-batches
the dearest run at the same time, for at each one the ranks wait for each other.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from mmsr_ray.learner.cost import TOKENS_ONLY, CostModel

PACK_GAIN = 0.25  # share of padding from which packing pays: on a CPU the packed layout costs a third more per token


@dataclass(frozen=True, slots=True)
class Item:
    """One trajectory to train on: where it lies (group number in the update, index in the group) and its size."""

    group: int
    trajectory: int
    advantage: float
    length: int  # expanded tokens
    sampled_tokens: int
    pictures: int = 0
    patches: int = 0  # of all its pictures: the work of the vision tower


@dataclass(frozen=True, slots=True)
class Portion:
    """One micro-batch of one rank; may be empty."""

    items: tuple[Item, ...]
    packed: bool = False

    @property
    def tokens(self) -> int:
        """Tokens the model computes, padding included."""
        if self.packed:
            return sum(item.length for item in self.items)
        return len(self.items) * max((item.length for item in self.items), default=0)

    def cost(self, model: CostModel) -> float:
        """Work of this micro-batch, padding included, in `model`'s currency."""
        return self.tokens + sum(row_cost(item, model) - item.length for item in self.items)


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """One optimiser step. `ranks[r]` are rank r's micro-batches; the counts are over all ranks."""

    ranks: tuple[tuple[Portion, ...], ...]
    sampled_tokens: int
    sequences: int


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """One update: its mini-batches in order, the loss ("grpo" or "sft") and the learning rate of all of them."""

    minibatches: tuple[MiniBatch, ...]
    loss: str
    lr: float
    world_size: int

    @property
    def items(self) -> list[Item]:
        return [item for mini in self.minibatches for rank in mini.ranks for portion in rank for item in portion.items]

    def groups_of(self, rank: int) -> list[int]:
        """Group numbers that a rank must fetch, ascending."""
        return sorted({item.group for mini in self.minibatches for portion in mini.ranks[rank] for item in portion.items})


def plan_update(
    items: Sequence[Item],
    *,
    world_size: int,
    micro_batch_tokens: int,
    minibatches: int = 1,
    packing: str = "never",
    loss: str = "grpo",
    lr: float = 0.0,
    cost: CostModel = TOKENS_ONLY,
) -> UpdatePlan:
    """Cut `items` into an UpdatePlan.

    Groups stay whole within a mini-batch, in their order (the original's mini-batch counts prompts). Inside, items go
    to the rank with the least work, dearest first, and each rank's list is cut along its length order, so that
    rows of one micro-batch are of similar length. Where all rows are packed their lengths do not matter: there a group
    stays together as far as ranks remain balanced, for its rows share pictures, and a micro-batch computes each of its
    pictures once. A micro-batch exceeds `micro_batch_tokens` only when a single row
    does. Items with no sampled token are left out: they have no gradient. Without any other item there is no mini-batch.

    Args:
        micro_batch_tokens: computed tokens of one micro-batch of one rank.
        minibatches: optimiser steps; fewer are made when there are fewer groups.
        packing: "never", "always" or "auto" (a micro-batch is packed when padding would exceed PACK_GAIN).
        cost: what a row costs; by default its tokens, whatever its pictures cost the vision tower.
    """
    if world_size < 1 or micro_batch_tokens < 1 or minibatches < 1:
        raise ValueError("world_size, micro_batch_tokens and minibatches must be at least 1")
    if packing not in ("never", "always", "auto"):
        raise ValueError(f"packing {packing!r}: choose never, always or auto")
    usable = [item for item in items if item.sampled_tokens > 0]
    groups = sorted({item.group for item in usable})
    parts = min(minibatches, len(groups))
    number_of = {group: position * parts // len(groups) for position, group in enumerate(groups)}
    chunks: list[list[Item]] = [[] for _ in range(parts)]
    for item in usable:
        chunks[number_of[item.group]].append(item)
    made = tuple(_minibatch(chunk, world_size, micro_batch_tokens, packing, cost) for chunk in chunks)
    return UpdatePlan(minibatches=made, loss=loss, lr=lr, world_size=world_size)


def row_cost(item: Item, model: CostModel) -> float:
    return model.row(item.length, item.patches, item.pictures)


def _minibatch(items: list[Item], world_size: int, budget: int, packing: str, cost: CostModel) -> MiniBatch:
    if packing == "always":
        cuts = [_gather(share, budget) for share in _balance_groups(items, world_size, cost)]
    else:
        cuts = [_cut(share, budget, packing) for share in _balance([[item] for item in items], world_size, cost)]
    count = max(len(cut) for cut in cuts)
    cuts = [_stretch(cut, count) for cut in cuts]
    made = [[Portion(tuple(rows), _pack(rows, packing)) for rows in cut] for cut in cuts]
    ranks = tuple(tuple(sorted(portions, key=lambda portion: -portion.cost(cost))) for portions in made)
    return MiniBatch(ranks=ranks, sampled_tokens=sum(item.sampled_tokens for item in items), sequences=len(items))


def _order(item: Item) -> tuple[int, int, int]:
    return (-item.length, item.group, item.trajectory)


def _work(rows: Sequence[Item], cost: CostModel) -> float:
    return sum(row_cost(item, cost) for item in rows)


def _balance(units: list[list[Item]], world_size: int, cost: CostModel) -> list[list[Item]]:
    """Dearest unit first, each to the rank with the least work; on a tie, with the fewest items. Each share by falling length."""
    heap = [(0.0, 0, rank) for rank in range(world_size)]
    shares: list[list[Item]] = [[] for _ in range(world_size)]
    priced = [(_work(unit, cost), unit) for unit in units]
    for price, unit in sorted(priced, key=lambda pair: (-pair[0], *_order(pair[1][0]))):
        work, count, rank = heapq.heappop(heap)
        shares[rank] += unit
        heapq.heappush(heap, (work + price, count + len(unit), rank))
    return [sorted(share, key=_order) for share in shares]


def _balance_groups(items: list[Item], world_size: int, cost: CostModel) -> list[list[Item]]:
    """Whole groups, or halves, quarters ... of them: the largest pieces with which ranks differ by no more than the dearest row."""
    groups: dict[int, list[Item]] = {}
    for item in sorted(items, key=_order):
        groups.setdefault(item.group, []).append(item)
    dearest = max(row_cost(item, cost) for item in items)
    pieces = 1
    while True:
        units = [unit for rows in groups.values() for piece in range(pieces) if (unit := rows[piece::pieces])]
        shares = _balance(units, world_size, cost)
        loads = [_work(share, cost) for share in shares]
        if max(loads) - min(loads) <= dearest or len(units) == len(items):
            return shares
        pieces *= 2


def _gather(share: list[Item], budget: int) -> list[list[Item]]:
    """Packed rows into runs within the budget: each joins a run that has room, one of its group if there is one."""
    runs: list[list[Item]] = []
    for item in sorted(share, key=lambda item: (item.group, *_order(item))):
        room = [run for run in runs if sum(row.length for row in run) + item.length <= budget]
        if not room:
            runs.append([item])
            continue
        max(room, key=lambda run: sum(row.group == item.group for row in run)).append(item)
    return runs


def _cut(share: list[Item], budget: int, packing: str) -> list[list[Item]]:
    """Cut a list sorted by falling length into runs within the budget."""
    runs: list[list[Item]] = []
    for item in share:
        if runs and _tokens([*runs[-1], item], packing) <= budget:
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


def _tokens(rows: list[Item], packing: str) -> int:
    return Portion(tuple(rows), _pack(rows, packing)).tokens


def _pack(rows: list[Item], packing: str) -> bool:
    if packing == "auto":
        real = sum(item.length for item in rows)
        padded = len(rows) * max((item.length for item in rows), default=0)
        return padded > 0 and 1.0 - real / padded > PACK_GAIN
    return packing == "always"


def _stretch(runs: list[list[Item]], count: int) -> list[list[Item]]:
    """Split the largest runs until there are `count`; empty runs where no row is left to split."""
    runs = [list(run) for run in runs]
    while len(runs) < count:
        largest = max(runs, key=len, default=[])
        if len(largest) < 2:
            runs.append([])
            continue
        half = len(largest) // 2
        position = next(i for i, run in enumerate(runs) if run is largest)
        runs[position : position + 1] = [largest[:half], largest[half:]]
    return runs
