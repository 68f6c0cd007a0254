"""What the dashboard shows, row by row. Pure data; a query without `when` has values in every run.

A new metric gets a panel here, then `python -m mmsr_ray.observability.dashboard`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmsr_ray.metrics import catalogue as m
from mmsr_ray.observability.dashboard.queries import FINE, grown, last, quantile, rate, share

SECONDS, SHARE, USD, BYTES = "s", "percentunit", "currencyUSD", "bytes"  # Grafana's names of units


@dataclass(frozen=True, slots=True)
class Query:
    """`legend`: with {{label}} for a label's value. `when`: what must be so that there are values at all; "" for always."""

    expr: str
    legend: str
    when: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    about: str  # shown where one points at the title
    queries: tuple[Query, ...]
    unit: str = "short"
    stacked: bool = False


def _of(part: str) -> tuple[str, ...]:
    return (f'part=~"{part}"',)


TRAINING = (
    Panel(
        "Reward and accuracy",
        "Means of the last step's responses. Held-out accuracy is measured every evaluation.every_steps.",
        (
            Query(last(m.REWARD), "reward {{run}}"),
            Query(last(m.ACCURACY), "accuracy {{run}}"),
            Query(last(m.FORMAT_OK), "keeps the protocol {{run}}"),
            Query(last(m.EVALUATION, "workflow"), "held out, {{workflow}} {{run}}", when="evaluation.every_steps > 0"),
        ),
    ),
    Panel(
        "Progress",
        "Steps that are finished, of grpo.steps.",
        (Query(last(m.STEP), "finished {{run}}"), Query(last(m.STEPS_WANTED), "wanted {{run}}")),
    ),
    Panel(
        "Search ratio",
        "Calls over allowed calls, and the share of responses that search.",
        (Query(last(m.SEARCH_RATIO, "of"), "{{of}} {{run}}"),),
        SHARE,
    ),
    Panel(
        "Searches per question",
        "By kind of search, and by what the question needs where the data says so.",
        (
            Query(last(m.SEARCHES, "kind"), "{{kind}} {{run}}"),
            Query(last(m.SEARCHES_BY_NEED, "need"), "needs {{need}} {{run}}", when="training questions say what they need (Atlas)"),
        ),
    ),
    Panel(
        "Where a step's seconds go",
        "Waiting for the batch (runners generate, wait for tools, idle), learning, weights to the runners.",
        (Query(last(m.STEP_SECONDS, "part", where=_of("generate|tools|idle|learn|sync")), "{{part}} {{run}}"),),
        SECONDS,
        stacked=True,
    ),
    Panel(
        "Since the last progress",
        "Seconds since a step or an evaluation ended. Rises without end where a step stands still.",
        (Query(f"time() - {last(m.PROGRESS)}", "{{run}}"),),
        SECONDS,
    ),
    Panel("Tokens per second", "Sampled tokens over the whole step.", (Query(last(m.TOKENS_PER_SECOND), "{{run}}"),)),
    Panel("Length of a response", "Prompt, observations and sampled tokens.", (Query(last(m.RESPONSE_TOKENS), "tokens {{run}}"),)),
    Panel(
        "Seconds of a response",
        "Mean time in the engine and in tools.",
        (Query(last(m.RESPONSE_SECONDS, "part"), "{{part}} {{run}}"),),
        SECONDS,
    ),
    Panel(
        "Weight sync",
        "From the end of learning until the runners hold the new weights, and what runners spent on it meanwhile.",
        (Query(last(m.STEP_SECONDS, where=_of("sync")), "{{run}}"),),
        SECONDS,
    ),
    Panel(
        "Staleness",
        "Weight versions between sampling and training a token, and the bound grpo.staleness.",
        (
            Query(last(m.STALENESS), "oldest {{run}}"),
            Query(last(m.STALENESS_BOUND), "bound {{run}}"),
            Query(last(m.OVERLAP), "overlap {{run}}", when="grpo.staleness > 0"),
        ),
    ),
    Panel(
        "Queues",
        "Groups that wait for a runner, are rolled out, are ready; requests in each engine.",
        (
            Query(last(m.GROUPS, "stage"), "groups {{stage}} {{run}}"),
            Query(last(m.ENGINE_REQUESTS, "runner"), "requests in engine {{runner}} {{run}}"),
        ),
    ),
    Panel(
        "Runners",
        "Those that hold the newest weights, and those that training was promised.",
        (Query(last(m.RUNNERS), "up {{run}}"), Query(last(m.RUNNERS_WANTED), "wanted {{run}}")),
    ),
    Panel("Groups, by how they ended", "So far in this process.", (Query(last(m.GROUPS_ENDED, "how"), "{{how}} {{run}}"),)),
    Panel(
        "Responses lost to infrastructure",
        "Share of the last quarter of an hour; they are never trained.",
        (Query(f"{grown(m.INFRA_ERRORS)} / ({grown(m.INFRA_ERRORS)} + {grown(m.RESPONSES)})", "{{run}}"),),
        SHARE,
    ),
    Panel("Loss", "Of the last update.", (Query(last(m.LOSS), "loss {{run}}"), Query(last(m.KL), "kl {{run}}"))),
    Panel(
        "Policy",
        "Entropy, share of clipped tokens, distance of engine and learner.",
        (
            Query(last(m.ENTROPY), "entropy {{run}}"),
            Query(last(m.CLIP_FRACTION), "clipped {{run}}"),
            Query(last(m.MISMATCH), "mismatch {{run}}"),
        ),
    ),
    Panel(
        "Gradients",
        "Norm before clipping, and the learning rate.",
        (Query(last(m.GRAD_NORM), "norm {{run}}"), Query(last(m.LEARNING_RATE), "learning rate {{run}}")),
    ),
    Panel(
        "Updates that were skipped",
        "Loss or gradient was not finite. Three in a row end the run.",
        (Query(last(m.SKIPPED), "so far {{run}}"), Query(last(m.SKIPPED_IN_A_ROW), "in a row {{run}}")),
    ),
)

TOOLS = (
    Panel(
        "Tool calls per second",
        "Calls of the agent and of the judge, by what came of them.",
        (Query(rate(m.TOOL_CALLS, "tool", "outcome"), "{{tool}} {{outcome}}"),),
    ),
    Panel(
        "Tool calls that failed",
        "Share of all calls, after the retries. Nothing found, or no money left, is no failure.",
        (Query(share(rate(m.TOOL_CALLS, "tool", where=(f'outcome!~"{FINE}"',)), rate(m.TOOL_CALLS, "tool")), "{{tool}}"),),
        SHARE,
    ),
    Panel(
        "Latency of a tool call",
        "Caches included.",
        tuple(Query(quantile(of, m.TOOL_CALL_SECONDS, "tool"), f"p{of * 100:g} {{{{tool}}}}") for of in (0.5, 0.95)),
        SECONDS,
    ),
    Panel(
        "Requests to services per second",
        "What went over the network, retries included.",
        (Query(rate(m.TOOL_REQUESTS, "provider", "outcome"), "{{provider}} {{outcome}}"),),
    ),
    Panel(
        "Latency of a request",
        "Of one request to a service.",
        tuple(Query(quantile(of, m.TOOL_REQUEST_SECONDS, "provider"), f"p{of * 100:g} {{{{provider}}}}") for of in (0.5, 0.95)),
        SECONDS,
    ),
    Panel(
        "Cache hits",
        "Share of tool calls that needed no service, and of the searches so far that nobody had to pay for.",
        (
            Query(share(rate(m.TOOL_CALLS, where=('cached="True"',)), rate(m.TOOL_CALLS)), "calls"),
            Query(f"1 - {last(m.SEARCHES_PAID)} / ({last(m.SEARCHES_ASKED)} > 0)", "searches {{run}}"),
        ),
        SHARE,
    ),
    Panel(
        "Cost",
        "Spent by the run, all submissions; its budget, where it has one; what the caches saved.",
        (
            Query(last(m.COST), "spent {{run}}"),
            Query(last(m.SAVED), "saved {{run}}"),
            Query(f"{last(m.BUDGET)} > 0", "budget {{run}}", when="tools.budget_usd > 0"),
        ),
        USD,
    ),
    Panel(
        "Cost per hour",
        "At the configured prices.",
        (Query(f"3600 * {rate(m.TOOL_COST, 'provider')}", "{{provider}}", when="a service has a price"),),
        USD,
    ),
    Panel(
        "Requests at once",
        "How many each service is given at once: halved where it is overloaded, one more for each round that goes through.",
        (Query(last(m.CONCURRENCY, "provider"), "{{provider}} {{run}}"),),
    ),
    Panel("Services left alone", "How often a breaker opened, so far.", (Query(last(m.BREAKER_OPENED), "{{run}}"),)),
)

_WHAT = ("model", "workflow")  # of a question

SERVING = (
    Panel(
        "Questions per second",
        "By outcome: ok, what the model broke, codes of errors, left where the client went away. The model is unknown where it was refused before it was understood.",
        (Query(rate(m.SERVED, "model", "outcome"), "{{model}} {{outcome}}"),),
    ),
    Panel(
        "Seconds of a question",
        "From its coming in to its end, of those that were answered.",
        tuple(
            Query(quantile(of, m.SERVED_SECONDS, *_WHAT, where=('outcome="ok"',)), f"p{of * 100:g} {{{{model}}}} {{{{workflow}}}}")
            for of in (0.5, 0.95, 0.99)
        ),
        SECONDS,
    ),
    Panel(
        "Seconds until there is something to see",
        "The first reason, search or answer.",
        tuple(Query(quantile(of, m.SERVED_FIRST_SECONDS, *_WHAT), f"p{of * 100:g} {{{{model}}}} {{{{workflow}}}}") for of in (0.5, 0.95)),
        SECONDS,
    ),
    Panel(
        "Seconds until a question is begun",
        "95 % wait at most so long.",
        (Query(quantile(0.95, m.SERVED_QUEUE_SECONDS, *_WHAT), "{{model}} {{workflow}}"),),
        SECONDS,
    ),
    Panel(
        "Questions inside",
        "Those that run or wait, and how many are taken at once before others are refused (serving.max_requests).",
        (Query(f"sum ({m.SERVING_OPEN.series})", "inside"), Query(f"sum ({m.SERVING_ROOM.series})", "room")),
    ),
    Panel("Tokens per second", "Of prompts and completions.", (Query(rate(m.SERVED_TOKENS_USED, "model", "kind"), "{{model}} {{kind}}"),)),
    Panel(
        "Tokens of a question",
        "95 % have at most so many.",
        (Query(quantile(0.95, m.SERVED_TOKENS, *_WHAT, "kind"), "{{model}} {{workflow}} {{kind}}"),),
    ),
    Panel(
        "Requests inside each deployment",
        "Ray's own count: questions at ingress and agent, turns at the engines.",
        (Query("sum by (deployment) (ray_serve_replica_processing_queries)", "{{deployment}}"),),
    ),
    Panel(
        "Searches per second",
        "By kind and outcome, of all models: they share the services.",
        (Query(rate(m.SERVED_SEARCHES, "kind", "outcome"), "{{kind}} {{outcome}}"),),
    ),
    Panel(
        "Cost per hour",
        "Of searches, at the configured prices.",
        (Query(f"3600 * {rate(m.SERVED_COST, *_WHAT)}", "{{model}} {{workflow}}", when="a service has a price"),),
        USD,
    ),
)

CLUSTER = (  # Ray's own metrics
    Panel(
        "Object store",
        "Bytes by where they lie, and how many there is room for. SPILLED is on disk.",
        (
            Query("sum by (Location) (ray_object_store_memory)", "{{Location}}"),
            Query('sum (ray_resources{Name="object_store_memory"})', "room"),
        ),
        BYTES,
    ),
    Panel("Actors", "By state; pending ones wait for a node.", (Query("sum by (State) (ray_actors)", "{{State}}"),)),
    Panel("Processor", "Percent of each node.", (Query("max by (instance) (ray_node_cpu_utilization)", "{{instance}}"),), "percent"),
    Panel(
        "Memory",
        "In use on each node.",
        (
            Query("max by (instance) (ray_node_mem_used)", "used {{instance}}"),
            Query("max by (instance) (ray_node_mem_total)", "there is {{instance}}"),
        ),
        BYTES,
    ),
    Panel(
        "GPU",
        "Percent of each card.",
        (Query("max by (instance, GpuIndex) (ray_node_gpus_utilization)", "{{instance}} {{GpuIndex}}", when="a node has a GPU"),),
        "percent",
    ),
)

ROWS: dict[str, tuple[Panel, ...]] = {"Training": TRAINING, "Tools": TOOLS, "Serving": SERVING, "Cluster": CLUSTER}
