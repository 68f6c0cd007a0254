"""When somebody has to look, and what to do then. Pure data; README.md of mmsr_ray/observability says the same to people."""

from __future__ import annotations

from dataclasses import dataclass

from mmsr_ray.metrics import catalogue as m
from mmsr_ray.observability.dashboard.queries import FINE, grown, last, rate, series, share

_WINDOW = "5m"
_REFUSED = 'outcome="overloaded"'
_BROKEN = "infra_error|internal|unavailable|timeout"  # outcomes of a question that are the service's fault


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a step may stand still: `factor` times the longest of the last six hours, and at least `seconds`."""

    factor: float = 5
    seconds: float = 900


@dataclass(frozen=True, slots=True)
class Alert:
    """`waits`: how long `expr` must hold. `summary` may name labels; `todo` is one sentence."""

    name: str
    expr: str
    waits: str
    severity: str  # critical: training or answers are lost meanwhile; warning: it can wait until morning
    summary: str
    todo: str


def alerts(patience: Patience) -> tuple[Alert, ...]:
    return (
        Alert(
            "MMSRStepStalled",
            _stalled(patience),
            "1m",
            "critical",
            "Run {{ $labels.run }}: no step ended for {{ $value | humanizeDuration }}",
            "Look at the panels Queues and Runners, then at the log of the GRPO actor; stop the job and submit it again: it goes on.",
        ),
        Alert(
            "MMSRRunGone",
            f"{_within(m.STEP)} < {_within(m.STEPS_WANTED)} unless on (run) {_last(m.STEP)}",
            "5m",
            "critical",
            "Run {{ $labels.run }} ended at step {{ $value }} without being done",
            "Submit the same command again, unless it was stopped on purpose; the job's log says why it ended.",
        ),
        Alert(
            "MMSRNotFinite",
            f"{grown(m.SKIPPED, chosen=False)} > 0 or {_last(m.LOSS)} != {_last(m.LOSS)}",
            "0s",
            "critical",
            "Run {{ $labels.run }}: loss or gradient is not finite, updates are skipped",
            "Three in a row end the run: lower grpo.lr, or look at nonfinite_step_*.parquet in the run folder.",
        ),
        Alert(
            "MMSRTooStale",
            f"{_last(m.STALENESS)} > {_last(m.STALENESS_BOUND)}",
            "0s",
            "critical",
            "Run {{ $labels.run }} trained tokens that were {{ $value }} weight versions old",
            "This must not happen: training asserts the bound. Stop the job and report it.",
        ),
        Alert(
            "MMSRRunnerLost",
            f"{_last(m.RUNNERS)} < {_last(m.RUNNERS_WANTED)}",
            "5m",
            "warning",
            "Run {{ $labels.run }} goes on with {{ $value }} runners",
            "Look for a node that is gone or an engine that does not start (logs of SearchEnvRunner); training goes on slower.",
        ),
        Alert(
            "MMSRToolsFailing",
            share(
                rate(m.TOOL_CALLS, "run", "tool", where=(f'outcome!~"{FINE}"',), window=_WINDOW, chosen=False),
                rate(m.TOOL_CALLS, "run", "tool", window=_WINDOW, chosen=False),
            )
            + " > 0.2",
            "5m",
            "warning",
            "{{ $labels.tool }} of run {{ $labels.run }}: {{ $value | humanizePercentage }} of the calls fail",
            "The panel Requests to services says which provider and why; python -m mmsr_ray.tools check tries it.",
        ),
        Alert(
            "MMSRResponsesLost",
            f"{grown(m.INFRA_ERRORS, chosen=False)} / ({grown(m.INFRA_ERRORS, chosen=False)} + {grown(m.RESPONSES, chosen=False)}) > 0.1",
            "5m",
            "warning",
            "Run {{ $labels.run }} loses {{ $value | humanizePercentage }} of its responses to tools or engines",
            "They are not trained, and cost time: mend the tools, or the engines that die.",
        ),
        Alert(
            "MMSRBudgetNearlySpent",
            f"{_last(m.COST)} / ({_last(m.BUDGET)} > 0) > 0.9",
            "0s",
            "warning",
            "Run {{ $labels.run }} has spent {{ $value | humanizePercentage }} of its budget",
            "At the end of it the job stops at a checkpoint with exit status 3; submit it with a higher tools.budget_usd to go on.",
        ),
        Alert(
            "MMSRServingFull",
            f"{rate(m.SERVED, where=(_REFUSED,), window=_WINDOW)} > 0 "
            f"or sum ({series(m.SERVING_OPEN)}) / sum ({series(m.SERVING_ROOM)}) > 0.9",
            "2m",
            "warning",
            "The service is full: questions are refused, or soon will be",
            "Give it engines (serving.engine.max_replicas) or, where they idle, room (serving.max_requests).",
        ),
        Alert(
            "MMSRServingBroken",
            share(rate(m.SERVED, "model", where=(f'outcome=~"{_BROKEN}"',), window=_WINDOW), rate(m.SERVED, "model", window=_WINDOW))
            + " > 0.05",
            "5m",
            "critical",
            "{{ $value | humanizePercentage }} of the questions to model {{ $labels.model }} are not answered",
            "The panel Questions per second says by which outcome; traces and the log of the Agent deployment say why.",
        ),
    )


def _last(metric: m.Metric) -> str:
    return last(metric, chosen=False)


def _within(metric: m.Metric) -> str:
    """The highest value of the last half hour, also where the process is gone since."""
    return f"max by (run) (max_over_time({series(metric, chosen=False)}[30m]))"


def _stalled(patience: Patience) -> str:
    total = series(m.STEP_SECONDS, 'part="total"', chosen=False)
    longest = f"max by (run) (max_over_time({total}[6h]))"
    before_the_first = f"0 * {_last(m.PROGRESS)}"
    allowed = f"clamp_min({patience.factor:g} * {longest} or {before_the_first}, {patience.seconds:g})"
    return f"time() - {_last(m.PROGRESS)} > {allowed} and on (run) {_last(m.EVALUATING)} == 0 and on (run) {_last(m.STEP)} < {_last(m.STEPS_WANTED)}"
