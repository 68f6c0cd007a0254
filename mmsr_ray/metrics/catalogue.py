"""Every metric of this project: name, kind, unit, labels. Pure.

Promise: a metric that is exported stands here and nowhere else; a label takes few values, known beforehand (a run, a provider, a kind of
outcome, a runner, a served model), and never what a user, a model or the web wrote. Prometheus sees the names with "ray_" before them, and counters with
"_total" behind them (`Metric.series`). What is counted rarely is a gauge that only grows while its process lives: Ray cannot say that a
counter is zero, and Prometheus misses the first step of one that was not there before. Ray tells a histogram's values by the middles of
their buckets: its `_sum` is not exact, so what is to be added up is a counter of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

FAST = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # upper bounds of buckets, in seconds
SLOW = (*FAST, 300.0)
LENGTHS = (10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0)  # tokens


class Kind(StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """`unit`: of the value, "" for a plain number. `buckets`: of a histogram."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    unit: str = ""
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> str:
        """Its name in Prometheus; a histogram's has _bucket, _sum and _count behind it."""
        return f"ray_{self.name}" + ("_total" if self.kind is Kind.COUNTER else "")


def _train(name: str, help: str, *labels: str, unit: str = "") -> Metric:
    return Metric(f"mmsr_train_{name}", Kind.GAUGE, help, ("run", *labels), unit)


# ---------------------------------------------------------------------------------------------------- training: how far it is

STEP = _train("step", "Training steps that are finished")
STEPS_WANTED = _train("steps_wanted", "Training steps that the run is for (grpo.steps)")
PROGRESS = _train("progress_timestamp", "When a step or an evaluation ended, or training began, last; seconds since 1970", unit="s")
EVALUATING = _train("evaluating", "Whether questions are evaluated instead of trained: 1 or 0")
VERSION = _train("weight_version", "Of the weights that runners were given last")

# ---------------------------------------------------------------------------------------------------- training: means of the last step

REWARD = _train("reward", "Mean reward of the last step's responses")
ACCURACY = _train("accuracy", "Share of the last step's responses that are correct")
FORMAT_OK = _train("format_ok", "Share of the last step's responses that keep the protocol")
SEARCH_RATIO = _train("search_ratio", "Of the last step: calls over allowed calls, or the share of responses that search", "of")
SEARCHES = _train("searches", "Searches per question of the last step, by kind", "kind")
SEARCHES_BY_NEED = _train("searches_by_need", "Searches per question of the last step, by what the question needs", "need")
RESPONSE_TOKENS = _train("response_tokens", "Mean length of the last step's responses", unit="tokens")
TOKENS_PER_SECOND = _train("tokens_per_second", "Tokens sampled over the seconds of the last step", unit="tokens/s")
EVALUATION = _train("evaluation_accuracy", "Held-out accuracy while training, by workflow", "workflow")
STALENESS = _train("staleness", "Largest age of a token trained in the last step", unit="versions")
STALENESS_BOUND = _train("staleness_bound", "What staleness may not exceed (grpo.staleness)", unit="versions")

# ---------------------------------------------------------------------------------------------------- training: time

STEP_SECONDS = _train("step_seconds", "Seconds of the last step: generate, tools, idle, learn and sync add up to total", "part", unit="s")
RESPONSE_SECONDS = _train("response_seconds", "Mean seconds of a response in the engine and in tools", "part", unit="s")
TURN_SECONDS = _train("turn_seconds", "Seconds of the last step's hand-overs, where runner and learner share a card", "phase", unit="s")
OVERLAP = _train("overlap", "Share of the time of learning in which runners rolled out (grpo.staleness > 0)")

# ---------------------------------------------------------------------------------------------------- training: the learner

LOSS = _train("loss", "Mean loss of the last update's mini-batches that were not skipped")
KL = _train("kl", "Mean distance of policy and reference in the last update")
ENTROPY = _train("entropy", "Mean entropy in the last update")
CLIP_FRACTION = _train("clip_fraction", "Share of tokens that the loss clipped in the last update")
GRAD_NORM = _train("grad_norm", "Mean norm of the last update's gradients")
MISMATCH = _train("mismatch", "Mean distance of engine's and learner's log-probabilities in the last update")
LEARNING_RATE = _train("learning_rate", "Of the last update")
SKIPPED = _train("skipped_updates", "Optimiser steps skipped so far in this process: loss or gradient was not finite")
SKIPPED_IN_A_ROW = _train("skipped_in_a_row", "The longest such row that reached into the last step; three end the run")

# ---------------------------------------------------------------------------------------------------- training: parts, queues, money

RUNNERS = _train("runners", "Runners that hold the newest weights")
RUNNERS_WANTED = _train("runners_wanted", "Runners that training was promised (rollout.num_runners); elastic ones may come on top")
GROUPS = _train("groups", "Groups that are charged now: queued for a runner, flying, ready for the learner", "stage")
GROUPS_ENDED = _train("groups_ended", "Groups so far in this process, by how they ended", "how")
RESPONSES = _train("responses", "Responses trained so far in this process")
INFRA_ERRORS = _train("infra_errors", "Responses lost so far in this process to tools or engine")
SEARCHES_ASKED = _train("searches_asked", "Answers of search services wanted so far in this process")
SEARCHES_PAID = _train("searches_paid", "Those of them that a service gave; the caches had the others")
BREAKER_OPENED = _train("breaker_opened", "How often a service was left alone, so far in this process")
CONCURRENCY = _train("concurrency", "Requests that a service is given at once now, all tool actors together", "provider")
COST = _train("cost", "What the run's services have charged, earlier submissions included", unit="USD")
SAVED = _train("saved", "What the caches saved so far in this process", unit="USD")
BUDGET = _train("budget", "What the run may spend (tools.budget_usd); 0 where there is no limit", unit="USD")
ENGINE_REQUESTS = Metric(
    "mmsr_rollout_engine_requests", Kind.GAUGE, "Requests in a runner's engine, waiting ones included", ("run", "runner")
)

# ---------------------------------------------------------------------------------------------------- tools, as they work

TOOL_REQUESTS = Metric("mmsr_tools_requests", Kind.COUNTER, "Requests to services that ended", ("run", "provider", "outcome"))
TOOL_REQUEST_SECONDS = Metric(
    "mmsr_tools_request_seconds", Kind.HISTOGRAM, "Seconds of one request", ("run", "provider"), "s", buckets=FAST
)
TOOL_COST = Metric("mmsr_tools_cost_usd", Kind.COUNTER, "What services charged, at the configured prices", ("run", "provider"), "USD")
TOOL_CALLS = Metric("mmsr_tools_calls", Kind.COUNTER, "Calls of the agent's tools", ("run", "tool", "outcome", "cached", "partial"))
TOOL_CALL_SECONDS = Metric("mmsr_tools_call_seconds", Kind.HISTOGRAM, "Seconds of one tool call", ("run", "tool"), "s", buckets=FAST)

# ---------------------------------------------------------------------------------------------------- serving

_WHAT = ("model", "workflow")
_WAYS = (*_WHAT, "outcome")
SERVED = Metric("mmsr_serving_requests", Kind.COUNTER, "Requests that ended", _WAYS)
SERVED_SECONDS = Metric(
    "mmsr_serving_seconds", Kind.HISTOGRAM, "Seconds of a request from its coming in to its end", _WAYS, "s", buckets=SLOW
)
SERVED_QUEUE_SECONDS = Metric("mmsr_serving_queue_seconds", Kind.HISTOGRAM, "Seconds until a request was begun", _WHAT, "s", buckets=SLOW)
SERVED_FIRST_SECONDS = Metric(
    "mmsr_serving_first_event_seconds", Kind.HISTOGRAM, "Seconds until there was something to see", _WHAT, "s", buckets=SLOW
)
SERVED_TOKENS = Metric("mmsr_serving_tokens", Kind.HISTOGRAM, "Tokens of an episode", (*_WHAT, "kind"), "tokens", buckets=LENGTHS)
SERVED_TOKENS_USED = Metric("mmsr_serving_tokens_used", Kind.COUNTER, "Tokens of episodes", (*_WHAT, "kind"), "tokens")
SERVED_SEARCHES = Metric("mmsr_serving_searches", Kind.COUNTER, "Searches of episodes", (*_WHAT, "kind", "outcome"))
SERVED_COST = Metric("mmsr_serving_cost_usd", Kind.COUNTER, "What searches cost", _WHAT, "USD")
SERVING_OPEN = Metric("mmsr_serving_open_requests", Kind.GAUGE, "Questions that run or wait in an ingress replica now", ())
SERVING_ROOM = Metric("mmsr_serving_room", Kind.GAUGE, "Questions that an ingress replica takes at once", ())


METRICS: dict[str, Metric] = {value.name: value for value in list(globals().values()) if isinstance(value, Metric)}
