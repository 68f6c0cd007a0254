"""What a weight update does with the turns that an engine is sampling. Pure; the names are those of vLLM's pause modes."""

from __future__ import annotations

from enum import StrEnum


class UpdateMode(StrEnum):
    KEEP = "keep"  # they are frozen and go on under the new weights: their tokens are of two versions
    WAIT = "wait"  # they finish first, and no new turn begins: each turn is of one version, the update waits for the longest


def complaint(update: str) -> str:
    """One sentence about a setting that cannot be; "" when all is well."""
    if update in list(UpdateMode):
        return ""
    if update == "abort":
        return "rollout.update='abort' would throw away what was sampled: choose keep (turns go on under new weights) or wait (they finish first)"
    return f"rollout.update={update!r}: choose keep (turns go on under the new weights) or wait (they finish first)"
