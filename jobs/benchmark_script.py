"""What a rollout of the training benchmark says, on both sides, token for token. Pure.

Promise: a turn has exactly `TURN_TOKENS` tokens, its end included, whatever it says; no two searches are the same, so that
no cache has an answer before it is paid for; in a group every second answer is right, so that there is something to learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmsr_ray.rewards.match import exact_match

TURN_TOKENS = 24
FILLER = " name"


class ScriptError(ValueError):
    """What should be said does not fit into a turn."""


Encode = Callable[[str], list[int]]  # text -> ids, the end of the turn included


def search(encode: Encode, number: int) -> list[int]:
    """Ids of a turn that asks for entity `number`, below a million."""
    return _filled(encode, f"</reason><text_search>What is {number:06d}</text_search>")


def answer(encode: Encode, text: str) -> list[int]:
    """Ids of a turn that answers."""
    return _filled(encode, f"</reason><answer>{text}</answer>")


def rollout(encode: Encode, number: int, gold: Sequence[str]) -> tuple[list[int], list[int]]:
    """Both turns of the rollout with this number over all rollouts; the odd ones are right."""
    return search(encode, number), answer(encode, gold[0] if number % 2 else "stranger")


def right(said: str, gold: Sequence[str]) -> bool:
    """By the rule that our own reward has."""
    return exact_match(said.partition("<answer>")[2].partition("</answer>")[0], gold)


def _filled(encode: Encode, end: str) -> list[int]:
    """A reason of as many words as it takes."""
    words = TURN_TOKENS - len(encode(f"<reason>{end}"))
    ids = encode(f"<reason>{FILLER * words}{end}") if words >= 0 else []
    if len(ids) != TURN_TOKENS:
        raise ScriptError(f"{end!r} cannot be made a turn of {TURN_TOKENS} tokens")
    return ids
