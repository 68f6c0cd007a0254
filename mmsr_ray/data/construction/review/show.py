"""Progress and agreement of a review for the terminal. Pure."""

from __future__ import annotations

from mmsr_ray.data.construction.review.agreement import Overview
from mmsr_ray.observability.pages import counts, number, percent


def status_text(overview: Overview) -> str:
    o = overview
    lines = [f"{o.candidates} candidates: {counts(o.states)}", f"settled as: {counts(o.verdicts)}", o.rule]
    for p in o.progress:
        lines.append(f"{p.annotator}: {p.first_looks} first looks, {p.second_looks} second looks; {counts(p.verdicts)}")
    for pair in o.pairs:
        lines.append(
            f"{pair.first} and {pair.second}: the same verdict on {percent(pair.agreement)} of {pair.items}, Cohen's kappa {number(pair.kappa)}"
        )
    lines.append(f"Fleiss' kappa of all: {number(o.fleiss)} over {o.fleiss_items} candidates")
    return "\n".join(lines)
