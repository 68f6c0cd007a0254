"""Can these bundles lie on these nodes? Arithmetic, without Ray.

Promise: `fit` is exact, not a greedy guess: where it finds no place for a bundle there is none, also when the sums would
suffice but lie on the wrong nodes. Amounts are compared as Ray does, in ten-thousandths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

Resources = Mapping[str, float]
UNIT = 10_000  # Ray's fixed point


@dataclass(frozen=True, slots=True)
class Kind:
    """`count` equal bundles."""

    resources: tuple[tuple[str, int], ...]  # in ten-thousandths
    count: int

    def __str__(self) -> str:
        return f"{self.count} x {amounts(self.resources)}"


@dataclass(frozen=True, slots=True)
class Room:
    """What nodes can hold of what was asked. `placed[i]` bundles of `kinds[i]` find a place at the same time, and no more in all."""

    kinds: tuple[Kind, ...]
    placed: tuple[int, ...]
    asked: Counter[str]
    there: Counter[str]

    @property
    def enough(self) -> bool:
        return all(kind.count == placed for kind, placed in zip(self.kinds, self.placed, strict=True))

    @property
    def short(self) -> Counter[str]:
        """By how much the sums do not suffice."""
        return self.asked - self.there

    def __str__(self) -> str:
        """asked, available, missing; one line."""
        said = f"asked: {amounts(self.asked.items())} in bundles of {', '.join(map(str, self.kinds))}; "
        said += f"available: {amounts((name, self.there[name]) for name in self.asked)}; "
        if self.short:
            return said + f"missing: {amounts(self.short.items())}"
        lacking = [
            f"{kind.count - placed} x {amounts(kind.resources)}"
            for kind, placed in zip(self.kinds, self.placed, strict=True)
            if kind.count > placed
        ]
        return said + (f"missing: a node with room for {', '.join(lacking)}, though the sums suffice" if lacking else "missing: nothing")


def fit(bundles: Sequence[Resources], nodes: Sequence[Resources]) -> Room:
    """How many of the bundles the nodes can hold at once; with equal kinds, as many as possible."""
    kinds = tuple(_kinds(bundles))
    tables = [_fixed(node) for node in nodes]
    best = (0,) * len(kinds)
    reached = {best}
    for node in tables:
        options = list(_loads(kinds, node))
        reached = _best_only({_add(state, load, kinds) for state in reached for load in options})
    best = max(reached, key=sum, default=best)
    asked = Counter[str]()
    for kind in kinds:
        asked.update({name: amount * kind.count for name, amount in kind.resources})
    there = Counter[str]()
    for node in tables:
        there.update({name: node.get(name, 0) for name in asked})
    return Room(kinds, best, asked, there)


def copies(bundle: Resources, nodes: Sequence[Resources]) -> int:
    """How many equal bundles, each of them something, the nodes can hold at once."""
    wanted = _fixed(bundle)
    return sum(min(node.get(name, 0) // amount for name, amount in wanted.items()) for node in map(_fixed, nodes))


def amounts(resources: Iterable[tuple[str, int]]) -> str:
    """CPU 4, GPU 0.5."""
    return ", ".join(f"{name} {value / UNIT:g}" for name, value in sorted(resources)) or "nothing"


def _kinds(bundles: Sequence[Resources]) -> Iterator[Kind]:
    counted = Counter(tuple(sorted(_fixed(bundle).items())) for bundle in bundles)
    return (Kind(resources, count) for resources, count in counted.items())


def _fixed(resources: Resources) -> dict[str, int]:
    return {name: whole for name, amount in resources.items() if (whole := round(amount * UNIT)) > 0}


def _loads(kinds: Sequence[Kind], node: Mapping[str, int]) -> Iterator[tuple[int, ...]]:
    """Every way to fill one node that cannot be added to."""
    most = [min([kind.count, *(node.get(name, 0) // amount for name, amount in kind.resources)]) for kind in kinds]
    if not kinds:
        return
    for first in product(*(range(count + 1) for count in most[:-1])):
        left = dict(node)
        for kind, number in zip(kinds[:-1], first, strict=True):
            for name, amount in kind.resources:
                left[name] = left.get(name, 0) - amount * number
        if min(left.values(), default=0) < 0:
            continue
        last = min([most[-1], *(left.get(name, 0) // amount for name, amount in kinds[-1].resources)])
        yield (*first, last)


def _add(state: tuple[int, ...], load: tuple[int, ...], kinds: Sequence[Kind]) -> tuple[int, ...]:
    return tuple(min(a + b, kind.count) for a, b, kind in zip(state, load, kinds, strict=True))


def _best_only(states: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Without those that another is at least as good as in every kind."""
    kept: list[tuple[int, ...]] = []
    for state in sorted(states, reverse=True):
        if not any(all(a >= b for a, b in zip(other, state, strict=True)) for other in kept):
            kept.append(state)
    return set(kept)
