"""Are these answers of this evaluation? Their settings against those of now. Pure.

Promise: whatever an answer may follow from is the same, or the answers are refused with the difference shown. What may differ
is what says how fast, how patiently, how often and at what price questions are asked, which ones, and where services lie.
"""

from __future__ import annotations

from mmsr_ray.differences import Settings, differences, said, under

FREE = (
    "run.name",
    "run.namespace",
    "data.train",
    "data.test",  # the questions are compared by themselves
    "data.benchmark_sizes",
    "data.image_workers",
    "data.prefetch_samples",
    "agent.deadline_seconds",
    "evaluation.label",
    "evaluation.benchmarks",
    "evaluation.workflows",
    "evaluation.before_training",
    "evaluation.trajectories_shown",
    "evaluation.deadline_seconds",
    "evaluation.every_steps",
    "evaluation.questions_during",
    "evaluation.workflows_during",
    "rollout",
    "learner",
    "grpo",
    "sft",
    "findings",
    "tools.actors",
    "tools.deadline_seconds",
    "tools.attempts",
    "tools.breaker_failures",
    "tools.breaker_cooldown_seconds",
    "tools.private_hosts",
    "tools.proxies_from_env",
    "atlas.latency_seconds",
    "atlas.latency_tail",
    "atlas.latency_max_seconds",
    "atlas.failure_rate",
    "atlas.rate_limit_rate",
    "atlas.garbage_rate",
    "atlas.hang_rate",
    "atlas.host",
)
"""Settings, or whole sections, that a resumed evaluation may have others of."""

OF_A_SERVICE = ("url", "key_env", "rate_per_second", "burst", "concurrency", "timeout_seconds", "price")
"""The same, of any service: it may have moved, or changed what it allows."""


def refusal(saved: Settings, now: Settings) -> str:
    """Why answers given under `saved` are not of this evaluation, in one sentence; "" when they are."""
    other = {key: values for key, values in differences(saved, now).items() if not may_differ(key)}
    return f"{said(other)}; set it as it was, or choose another run.name" if other else ""


def may_differ(key: str) -> bool:
    """Of a dotted key."""
    return under(key, FREE) or any(part in OF_A_SERVICE for part in key.split(".")[1:])
