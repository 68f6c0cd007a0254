"""What answering took: search calls by tool and how they ended, tokens, seconds and money. Pure arithmetic over `TrajectorySummary`.

Promise: a call counts once, however often it was tried inside the tools. Ratios about the policy's behaviour are over the
questions that count (`scored`); failures and money are over all questions asked, because a broken question is where
failures lie and is paid for too. Only the last attempt at a question is seen here, and nothing of one whose runner died.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmsr_ray.types import TrajectorySummary

TOOLS = ("image", "text")


def tool_use(scored: Sequence[TrajectorySummary], asked: Sequence[TrajectorySummary], search_limit: int) -> dict[str, dict[str, Any]]:
    """By tool ("image", "text") and for "both" together:

    - `calls`: executed calls in scored questions;
    - `search_ratio_responses`: share of scored responses with at least one call of the tool (spec §6.4, the text's definition);
    - `search_ratio_calls`: calls over the `search_limit` allowed per question (Table 1's definition); image and text add up to both;
    - `share_of_calls`: calls of the tool over calls of both tools; image and text add up to 1;
    - `attempted`: calls of all asked questions, broken ones included;
    - `failures`, `failure_rate`: attempted calls that the infrastructure left without an answer, and their share (spec §2.2);
    - `no_results`, `no_results_rate`: attempted calls that were answered with nothing found, and their share. These are no failures.

    Ratios lie in [0, 1], None where undefined.
    """
    counts = {tool: _of_tool(scored, asked, tool) for tool in TOOLS}
    both = {key: sum(counts[tool][key] for tool in TOOLS) for key in ("calls", "attempted", "failures", "no_results")}
    counts["both"] = {**both, "responses": sum(s.image_searches + s.text_searches > 0 for s in scored)}
    return {
        tool: {
            "calls": c["calls"],
            "search_ratio_responses": ratio(c["responses"], len(scored)),
            "search_ratio_calls": ratio(c["calls"], len(scored) * search_limit),
            "share_of_calls": ratio(c["calls"], both["calls"]),
            "attempted": c["attempted"],
            "failures": c["failures"],
            "failure_rate": ratio(c["failures"], c["attempted"]),
            "no_results": c["no_results"],
            "no_results_rate": ratio(c["no_results"], c["attempted"]),
        }
        for tool, c in counts.items()
    }


def per_question(scored: Sequence[TrajectorySummary], asked: Sequence[TrajectorySummary]) -> dict[str, float | None]:
    """Means over the scored questions:

    - `sampled_tokens`: what the model wrote, `transcript_tokens`: its whole transcript, pictures expanded, `turns`, `pictures`;
    - `generate_seconds`: in the engine or endpoint, waiting for its batch included; `tool_seconds`: waiting for search results.
      Questions run side by side, so these are times of one question and do not add up to the time of the evaluation;
    - `cost_usd`: paid for searches and verdict.

    And `cost_usd_all`: the bill of all asked questions, a sum.
    """

    def mean(name: str) -> float | None:
        return ratio(sum(getattr(s, name) for s in scored), len(scored))

    return {
        "sampled_tokens": mean("sampled_tokens"),
        "transcript_tokens": mean("length"),
        "turns": mean("turns"),
        "pictures": mean("pictures"),
        "generate_seconds": mean("generate_seconds"),
        "tool_seconds": mean("tool_seconds"),
        "cost_usd": mean("cost_usd"),
        "cost_usd_all": float(sum(s.cost_usd for s in asked)),
    }


def ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _of_tool(scored: Sequence[TrajectorySummary], asked: Sequence[TrajectorySummary], tool: str) -> dict[str, int]:
    calls = [getattr(s, f"{tool}_searches") for s in scored]
    return {
        "calls": sum(calls),
        "responses": sum(made > 0 for made in calls),
        "attempted": sum(getattr(s, f"{tool}_searches") for s in asked),
        "failures": sum(getattr(s, f"{tool}_failures") for s in asked),
        "no_results": sum(getattr(s, f"{tool}_no_results") for s in asked),
    }
