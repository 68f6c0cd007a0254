"""Settings of the reward and what they must satisfy. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RewardConfig:
    match: str = "em"  # em | subem | none: the rule. With tools.judge a judge is asked about every answer that the rule rejects
    judge_sees_picture: bool = False
    format_weight: float = 0.1  # alpha of spec §3.1
    search_penalty: float = 0.1  # p of spec §3.1
    per_call: bool = False
    penalty_warmup_steps: int = 0
    overlong_limit: int = 0  # DAPO, arXiv 2503.14476, equation 13: its L_max, in sampled tokens; 0: no such penalty
    overlong_buffer: int = 0  # L_cache: over so many tokens before the limit the penalty grows from 0 to 1


def complaint(c: RewardConfig, *, judge: bool) -> str:
    """One sentence about a setting that cannot be; "" when all is well. `judge`: whether the run has one."""
    rules = [
        (c.match in ("em", "subem", "none"), f"match={c.match!r}: choose em, subem or none"),
        (c.match != "none" or judge, "match=none leaves nobody to say what is right: set tools.judge.kind=chat, or choose em or subem"),
        (0 <= c.format_weight <= 1, "format_weight must lie in [0, 1]"),
        (0 <= c.search_penalty <= 1, "search_penalty must lie in [0, 1]"),
        (c.penalty_warmup_steps >= 0, "penalty_warmup_steps must be 0 (no warm-up) or more"),
        (0 <= c.overlong_buffer <= c.overlong_limit, "overlong_buffer must lie between 0 and reward.overlong_limit"),
    ]
    return next((f"reward.{sentence}" for ok, sentence in rules if not ok), "")
