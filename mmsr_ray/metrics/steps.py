"""What the record of a training step (algorithms.record, the line of metrics.jsonl) says, as metrics. Pure.

Promise: nothing is computed here that the record does not hold; a part of the record that is missing, as `tools` where no tool actor
answered, leaves its metrics as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmsr_ray.metrics import catalogue as m
from mmsr_ray.metrics.catalogue import Metric

Value = tuple[Metric, dict[str, str], float]  # its labels beside `run`
Record = Mapping[str, Any]

_PLAIN = {
    "step": m.STEP,
    "version": m.VERSION,
    "reward": m.REWARD,
    "accuracy": m.ACCURACY,
    "format_ok": m.FORMAT_OK,
    "length_mean": m.RESPONSE_TOKENS,
    "tokens_per_second": m.TOKENS_PER_SECOND,
    "staleness_max": m.STALENESS,
    "overlap": m.OVERLAP,
    "loss": m.LOSS,
    "kl": m.KL,
    "entropy": m.ENTROPY,
    "clip_fraction": m.CLIP_FRACTION,
    "grad_norm": m.GRAD_NORM,
    "mismatch_abs_mean": m.MISMATCH,
    "lr": m.LEARNING_RATE,
    "skipped_in_a_row": m.SKIPPED_IN_A_ROW,
    "runners": m.RUNNERS,
}
_LABELLED = {  # key of the record: metric, label, value of the label
    "search_ratio_calls": (m.SEARCH_RATIO, {"of": "calls"}),
    "search_ratio_responses": (m.SEARCH_RATIO, {"of": "responses"}),
    "searches_image": (m.SEARCHES, {"kind": "image"}),
    "searches_text": (m.SEARCHES, {"kind": "text"}),
}
_GROUPS = {  # of a mapping in the record: metric, and the label that its keys are
    "by_need": (m.SEARCHES_BY_NEED, "need"),
    "seconds": (m.STEP_SECONDS, "part"),
    "response_seconds": (m.RESPONSE_SECONDS, "part"),
    "turns": (m.TURN_SECONDS, "phase"),
}
_SUMMED: tuple[tuple[Metric, dict[str, str], Callable[[Record], float]], ...] = (  # over the steps of a process
    (m.SKIPPED, {}, lambda record: record["skipped"]),
    (m.RESPONSES, {}, lambda record: record["trajectories"]),
    (m.INFRA_ERRORS, {}, lambda record: record["infra_errors"]),
    (m.GROUPS_ENDED, {"how": "trained"}, lambda record: record["groups"]),
    (m.GROUPS_ENDED, {"how": "requeued"}, lambda record: record["requeued"]),
    (m.GROUPS_ENDED, {"how": "filtered"}, lambda record: record["filtered"]),
    (m.GROUPS_ENDED, {"how": "given_up"}, lambda record: record["given_up"]),
    (m.SEARCHES_ASKED, {}, lambda record: record.get("tools", {}).get("searches_asked", 0.0)),
    (m.SEARCHES_PAID, {}, lambda record: record.get("tools", {}).get("searches_paid", 0.0)),
    (m.BREAKER_OPENED, {}, lambda record: record.get("tools", {}).get("breaker_opened", 0.0)),
    (m.SAVED, {}, lambda record: record.get("tools", {}).get("saved_usd", 0.0)),
)


class Steps:
    """Of one process. Its sums are there from the beginning, at zero."""

    def __init__(self) -> None:
        self._sums = [0.0] * len(_SUMMED)

    def before(self) -> list[Value]:
        """What there is to say before the first step."""
        return self._totals()

    def after(self, record: Record) -> list[Value]:
        """`record`: of a step, as it is written to metrics.jsonl."""
        for place, (_, _, of) in enumerate(_SUMMED):
            self._sums[place] += of(record)
        return [*_of_the_step(record), *self._totals()]

    def _totals(self) -> list[Value]:
        return [(metric, labels, total) for (metric, labels, _), total in zip(_SUMMED, self._sums, strict=True)]


def _of_the_step(record: Record) -> Iterator[Value]:
    for key, metric in _PLAIN.items():
        if key in record:
            yield metric, {}, float(record[key])
    for key, (metric, labels) in _LABELLED.items():
        yield metric, labels, float(record[key])
    for key, (metric, label) in _GROUPS.items():
        for name, value in record.get(key, {}).items():
            yield metric, {label: name}, float(value)
    for workflow, row in record.get("evaluation", {}).items():
        if isinstance(row, Mapping) and row.get("accuracy") is not None:
            yield m.EVALUATION, {"workflow": workflow}, float(row["accuracy"])
    tools = record.get("tools", {})
    if "cost_usd_total" in tools:
        yield m.COST, {}, float(tools["cost_usd_total"])
    for provider, most in tools.get("concurrency", {}).items():
        yield m.CONCURRENCY, {"provider": provider}, float(most)
