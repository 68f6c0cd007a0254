"""Chooses the questions of a search-balanced set: the asked ratio of required to free, the required kinds even where possible.

Promise: pure. Who is chosen depends on keys, needs and seed alone, never on the order in which candidates come; two questions
of one need have equal chances. What is left out stays in the files, with the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmsr_ray.data.construction.balance_settings import BalanceConfig
from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.data.schema import DataError
from mmsr_ray.types import Need

LEFT_OUT = "left out of the mixture"
REQUIRED = (Need.IMAGE, Need.TEXT, Need.MIX)


@dataclass(frozen=True, slots=True)
class Mixture:
    """`chosen` keys, and how many of each need were left out."""

    chosen: frozenset[str]
    left_out: dict[Need, int]


def mixture(needs: Mapping[str, Need], config: BalanceConfig, seed: int) -> Mixture:
    """The largest set of the ratio `required_per_free`, of at most `questions`; `needs` by key.

    Raises DataError where there is no such set, because one side of the ratio is missing.
    """
    by_need = {need: sorted((key for key, own in needs.items() if own is need), key=lambda key: _place(key, seed)) for need in Need}
    sizes = _sizes({need: len(keys) for need, keys in by_need.items()}, config)
    chosen = frozenset(key for need, keys in by_need.items() for key in keys[: sizes[need]])
    return Mixture(chosen, {need: len(keys) - sizes[need] for need, keys in by_need.items()})


def mixed(candidates: Iterable[Candidate], chosen: frozenset[str]) -> Iterator[Candidate]:
    """Candidates that are kept and not chosen are dropped; the others pass unchanged."""
    for candidate in candidates:
        if candidate.kept and candidate.key not in chosen:
            yield candidate.dropped(LEFT_OUT, f"there are more {candidate.need} questions than the ratio asks for")
        else:
            yield candidate


def _place(key: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16).digest()


def _sizes(available: Mapping[Need, int], config: BalanceConfig) -> dict[Need, int]:
    """How many questions of each need are taken."""
    free, required = available[Need.SEARCH_FREE], sum(available[need] for need in REQUIRED)
    most = config.questions or free + required
    ratio = config.required_per_free
    if ratio == 0:
        wanted_free = min(free, round(most * free / (free + required))) if most < free + required else free
        wanted_required = min(required, most - wanted_free)
    else:
        wanted_free = min(free, int(required / ratio), int(most / (1 + ratio)))
        wanted_required = min(required, round(wanted_free * ratio))
        if wanted_free == 0:
            raise DataError(
                f"no set of {ratio:g} search-required questions to one search-free can be made of {required} and {free}: collect more of "
                "what is missing, or keep all with construction.balance.required_per_free=0"
            )
    shares = even_shares(wanted_required, [available[need] for need in REQUIRED])
    return {Need.SEARCH_FREE: wanted_free} | dict(zip(REQUIRED, shares, strict=True))


def even_shares(total: int, available: Sequence[int]) -> list[int]:
    """`total` split as evenly as `available` allows; its sum is the smaller of `total` and all there is."""
    shares = [0] * len(available)
    scarce_first = sorted(range(len(available)), key=lambda i: available[i])
    left = min(total, sum(available))
    for done, i in enumerate(scarce_first):  # what a whole number leaves over goes to those who have more
        shares[i] = min(available[i], left // (len(available) - done))
        left -= shares[i]
    return shares
