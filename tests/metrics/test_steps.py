"""A step's record as metrics."""

from __future__ import annotations

from typing import Any

from mmsr_ray.algorithms.record import response_record, rollout_record
from mmsr_ray.config import ToolsConfig
from mmsr_ray.learner.tally import METRICS as UPDATE
from mmsr_ray.metrics import catalogue as m
from mmsr_ray.metrics.steps import Steps, Value
from mmsr_ray.tools.measures import step_record
from mmsr_ray.tools.providers import services


def record(**more: Any) -> dict[str, Any]:
    """As `GRPO._log` makes it, of an empty batch."""
    seconds = {"rollout": 3.0, "generate": 1.0, "tools": 1.0, "idle": 1.0, "learn": 2.0, "sync": 0.5, "total": 5.5}
    learned = dict.fromkeys(UPDATE, 0.25) | {"lr": 1e-4, "grad_norm": 2.0, "skipped": 1.0, "skipped_in_a_row": 1.0}
    counts = {"requeued": 2, "filtered": 3, "given_up": 0}
    rest = {"staleness_max": 1, "infra_errors": 4, "runners": 2, "tokens_per_second": 100.0, "seconds": seconds, "step": 7, "version": 9}
    whole = rollout_record([], search_limit=2) | learned | counts | rest | {"response_seconds": response_record([])}
    return whole | {"trajectories": 8, "groups": 2} | more


def found(values: list[Value], metric: m.Metric, **labels: str) -> float:
    (value,) = [value for told, given, value in values if told is metric and given == labels]
    return value


def test_the_last_step_as_it_was() -> None:
    row = {"accuracy": 0.5, "questions": 4}
    values = Steps().after(record(by_need={"search_free": 0.1}, evaluation={"on_demand": row, "best_accuracy": 0.5}, overlap=0.7))
    assert (found(values, m.STEP), found(values, m.VERSION), found(values, m.STALENESS), found(values, m.OVERLAP)) == (7, 9, 1, 0.7)
    assert found(values, m.STEP_SECONDS, part="sync") == 0.5 and found(values, m.STEP_SECONDS, part="total") == 5.5
    assert found(values, m.SEARCHES_BY_NEED, need="search_free") == 0.1
    assert found(values, m.EVALUATION, workflow="on_demand") == 0.5
    assert found(values, m.LOSS) == 0.25 and found(values, m.GRAD_NORM) == 2.0
    for metric, given, _ in values:
        assert set(metric.labels) == {"run", *given}, metric.name


def test_what_is_rare_is_summed_and_there_from_the_start() -> None:
    steps = Steps()
    assert {value for _, _, value in steps.before()} == {0.0}
    prices = {name: section.price for name, section in services(ToolsConfig()).items()}
    news = {
        "text_search.answered": 2.0,
        "cache.query.misses": 2.0,
        "cache.query.hits": 6.0,
        "text_search.breaker_opened": 1.0,
        "reader.concurrency": 32.0,
    }
    first = steps.after(record(tools=step_record(news, prices) | {"cost_usd_total": 1.5}))
    assert found(first, m.CONCURRENCY, provider="reader") == 32 and found(first, m.COST) == 1.5
    values = steps.after(record())  # of a step in which no tool actor answered
    assert found(values, m.SKIPPED) == 2 and found(values, m.INFRA_ERRORS) == 8 and found(values, m.RESPONSES) == 16
    assert [found(values, m.GROUPS_ENDED, how=how) for how in ("trained", "requeued", "filtered", "given_up")] == [4, 4, 6, 0]
    assert (found(values, m.SEARCHES_ASKED), found(values, m.SEARCHES_PAID), found(values, m.BREAKER_OPENED)) == (8, 2, 1)
    assert not [value for metric, _, value in values if metric is m.COST], "left as it was"
