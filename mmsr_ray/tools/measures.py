"""What the tools did, in numbers that add up: over actors, over steps, over the submissions of a run.

Promise: pure. A measurement is a flat dict of non-negative counts (`Measures.stats`); the sum of two is the measurement of
both, and so is a latency distribution: its buckets are counts, and a quantile of it is at most `RELATIVE_ERROR` off.
`Totals` sums readings of actors that may restart: a total never goes back. What an actor did between its last reading and
its death is missing.

Names: <service>.requests, .answered (what it charges for), .<failure>, .cost_usd, .breaker_opened; calls.<tool>,
calls.<tool>.cached, .partial, .failed.<failure>; cache.<layer>.hits, .negative_hits, .joined, .misses; seconds.<service or tool>.<bucket>.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmsr_ray.config import PriceConfig
from mmsr_ray.types import ToolFailure, ToolKind, ToolResult

Stats = Mapping[str, float]

_GROWTH = 1.1  # of one bucket to the next
_SHORTEST, _LONGEST = 0.001, 1_000.0  # seconds; what lies outside counts as one of these
RELATIVE_ERROR = math.sqrt(_GROWTH) - 1  # 4.9 %: a value stands for its bucket's geometric middle
OK = "ok"
GAUGES = ("concurrency",)  # last part of the names that say how things are, not how often; they add up over actors only
# The layer of the cache that a service's answers are kept in.
LAYERS = {
    "image_search": "image",
    "image_host": "upload",
    "text_search": "query",
    "reader": "page",
    "summariser": "summary",
    "judge": "verdict",
    "model": "reply",
    "picture_finder": "finds",
}
_LOOKUPS = ("hits", "negative_hits", "joined", "misses")
AGENTS = (ToolKind.IMAGE, ToolKind.TEXT)  # tools of the agent; the judge is the reward's, the model plays the agent itself
SEARCHES = {"image_search": "image searches", "text_search": "text searches"}


class Observer(Protocol):
    """Told of every request that ended and of every call. `outcome` is "ok" or a ToolFailure; costs are in USD."""

    def request(self, service: str, outcome: str, seconds: float, cost_usd: float) -> None: ...

    def call(self, result: ToolResult) -> None: ...


class Measures:
    """Counts and latencies of one process; an Observer, and passes everything on to the `others`."""

    def __init__(self, others: Sequence[Observer] = ()) -> None:
        self._others = others
        self._counts: Counter[str] = Counter()
        self._costs: dict[str, float] = {}

    def request(self, service: str, outcome: str, seconds: float, cost_usd: float) -> None:
        self._counts[f"seconds.{service}.{bucket(seconds)}"] += 1
        if outcome in (OK, "no_results"):
            self._counts[f"{service}.answered"] += 1
        if cost_usd:
            self._costs[f"{service}.cost_usd"] = self._costs.get(f"{service}.cost_usd", 0.0) + cost_usd
        for other in self._others:
            other.request(service, outcome, seconds, cost_usd)

    def call(self, result: ToolResult) -> None:
        tool = str(result.kind)
        self._counts[f"calls.{tool}"] += 1
        self._counts[f"seconds.{tool}.{bucket(result.seconds)}"] += 1
        self._counts[f"calls.{tool}.cached"] += result.cached
        self._counts[f"calls.{tool}.partial"] += result.partial
        if result.failure is not None:
            self._counts[f"calls.{tool}.failed.{result.failure}"] += 1
        for other in self._others:
            other.call(result)

    def stats(self) -> dict[str, float]:
        return {name: float(count) for name, count in self._counts.items()} | self._costs


# ---------------------------------------------------------------------------------------------------- latencies


def bucket(seconds: float) -> int:
    """Number of the bucket: 0 for a millisecond and less, one more for each 10 %."""
    return round(math.log(min(max(seconds, _SHORTEST), _LONGEST) / _SHORTEST) / math.log(_GROWTH))


def quantile(stats: Stats, name: str, share: float) -> float | None:
    """Seconds that `share` of the requests or calls of a service or tool stay within; None where there was none."""
    prefix = f"seconds.{name}."
    buckets = sorted((int(key[len(prefix) :]), count) for key, count in stats.items() if key.startswith(prefix) and count > 0)
    rank = share * sum(count for _, count in buckets)
    for number, count in buckets:
        rank -= count
        if rank <= 1e-9:
            return _SHORTEST * _GROWTH**number
    return None


# ---------------------------------------------------------------------------------------------------- sums


def add(readings: Iterable[Stats]) -> dict[str, float]:
    total: dict[str, float] = {}
    for stats in readings:
        for name, value in stats.items():
            total[name] = total.get(name, 0.0) + value
    return total


@dataclass
class Totals:
    """Sums over a run. `seen` is the last reading of each life of an actor: a new life begins at zero."""

    sums: dict[str, float] = field(default_factory=dict)
    seen: dict[str, dict[str, float]] = field(default_factory=dict)

    def take(self, readings: Mapping[str, Stats]) -> dict[str, float]:
        """Take in the readings of all lives that answered, by life; what is new since each one's last. Gauges pass through."""
        news: dict[str, float] = {}
        for life, stats in readings.items():
            before = self.seen.get(life, {})
            for name, value in stats.items():
                new = value if is_gauge(name) else max(0.0, value - before.get(name, 0.0))
                if new:
                    news[name] = news.get(name, 0.0) + new
            self.seen[life] = dict(stats)
        for name, value in news.items():
            self.sums[name] = value if is_gauge(name) else self.sums.get(name, 0.0) + value
        return news


def is_gauge(name: str) -> bool:
    return name.rpartition(".")[2] in GAUGES


# ---------------------------------------------------------------------------------------------------- what they say


def lookups(stats: Stats, service: str) -> float:
    """How often an answer of this service was wanted, from the cache or not."""
    return sum(stats.get(f"cache.{LAYERS[service]}.{how}", 0.0) for how in _LOOKUPS)


def saved_usd(stats: Stats, prices: Mapping[str, PriceConfig]) -> float:
    """What the answers that came from the cache or from another's request would have cost, at the mean price of those paid for."""
    total = 0.0
    for service, layer in LAYERS.items():
        answered = stats.get(f"{service}.answered", 0.0)
        each = stats.get(f"{service}.cost_usd", 0.0) / answered if answered else prices[service].per_call
        total += each * (lookups(stats, service) - stats.get(f"cache.{layer}.misses", 0.0))
    return total


def failures(stats: Stats) -> dict[str, float]:
    """Failed calls by kind, all tools together."""
    found: dict[str, float] = {}
    for name, count in stats.items():
        if name.startswith("calls.") and ".failed." in name and count:
            kind = name.rpartition(".")[2]
            found[kind] = found.get(kind, 0.0) + count
    return found


def step_record(stats: Stats, prices: Mapping[str, PriceConfig]) -> dict[str, Any]:
    """The group `tools` of a training step's record, from what is new since the step before."""
    asked = sum(stats.get(f"calls.{kind}", 0.0) for kind in AGENTS)
    seconds = {f"{kind}_p{share}": quantile(stats, kind, share / 100) for kind in AGENTS for share in (50, 95)}
    return {
        "calls": asked,
        "cached_share": _share(stats, "cached", asked),
        "partial_share": _share(stats, "partial", asked),
        "failures": failures(stats),
        "seconds": {name: round(value, 4) for name, value in seconds.items() if value is not None},
        "searches_asked": sum(lookups(stats, service) for service in SEARCHES),
        "searches_paid": sum(stats.get(f"{service}.answered", 0.0) for service in SEARCHES),
        "requests": sum(stats.get(f"{service}.requests", 0.0) for service in LAYERS),
        "breaker_opened": sum(stats.get(f"{service}.breaker_opened", 0.0) for service in LAYERS),
        "concurrency": {service: stats[name] for service in LAYERS if (name := f"{service}.concurrency") in stats},
        "cost_usd": round(sum(stats.get(f"{service}.cost_usd", 0.0) for service in LAYERS), 9),
        "saved_usd": round(saved_usd(stats, prices), 9),
    }


def provider_rows(stats: Stats) -> list[dict[str, Any]]:
    """One row per service that was asked or looked up: requests, failures by kind, cache, latencies in seconds, cost."""
    rows = []
    for service in (*LAYERS, "thumbnails"):
        layer = LAYERS.get(service, "thumbnail")
        wanted = sum(stats.get(f"cache.{layer}.{how}", 0.0) for how in _LOOKUPS)
        requests = stats.get(f"{service}.requests", 0.0)
        if not wanted and not requests:
            continue
        rows.append(
            {
                "service": service,
                "wanted": int(wanted),
                "cache_hits": int(stats.get(f"cache.{layer}.hits", 0.0) + stats.get(f"cache.{layer}.negative_hits", 0.0)),
                "joined": int(stats.get(f"cache.{layer}.joined", 0.0)),
                "requests": int(requests),
                "failures": _failures_of(stats, service),
                "breaker_opened": int(stats.get(f"{service}.breaker_opened", 0.0)),
                "seconds": {f"p{share}": quantile(stats, service, share / 100) for share in (50, 95, 99)},
                "cost_usd": stats.get(f"{service}.cost_usd", 0.0),
            }
        )
    return rows


def call_rows(stats: Stats) -> list[dict[str, Any]]:
    """One row per tool that was called."""
    rows = []
    for kind in ToolKind:
        if calls := stats.get(f"calls.{kind}", 0.0):
            prefix = f"calls.{kind}.failed."
            rows.append(
                {
                    "tool": str(kind),
                    "calls": int(calls),
                    "cached": int(stats.get(f"calls.{kind}.cached", 0.0)),
                    "partial": int(stats.get(f"calls.{kind}.partial", 0.0)),
                    "failures": {name[len(prefix) :]: int(n) for name, n in sorted(stats.items()) if name.startswith(prefix) and n},
                    "seconds": {f"p{share}": quantile(stats, kind, share / 100) for share in (50, 95, 99)},
                }
            )
    return rows


def saving(stats: Stats, prices: Mapping[str, PriceConfig]) -> dict[str, Any]:
    """How many searches were asked for, how many of them reached a service, and what that saved."""
    return {
        "searches": {
            label: {"asked": int(lookups(stats, service)), "paid": int(stats.get(f"{service}.answered", 0.0))}
            for service, label in SEARCHES.items()
            if lookups(stats, service)
        },
        "saved_usd": round(saved_usd(stats, prices), 6),
    }


def _share(stats: Stats, what: str, of: float) -> float:
    return sum(stats.get(f"calls.{kind}.{what}", 0.0) for kind in AGENTS) / of if of else 0.0


def _failures_of(stats: Stats, service: str) -> dict[str, int]:
    return {str(kind): int(stats[name]) for kind in ToolFailure if stats.get(name := f"{service}.{kind}")}
