"""Predictions beside what was measured: every number that is compared here was seen by no calibration.

What the model is given: `suite=growth` (trajectories in flight on one engine) for engine and runner, `suite=tools` (one call at a time) for
the tool actors, `suite=learner` for the learner, `suite=weights` for the update, all in jobs/configs/plan_atlas.yaml. The suite
`asynchrony` adds its own learner (it has gradient checkpointing and one core) and what its tools' caches answered.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from random import Random

import pytest
import simpy

from mmsr_ray.config import load
from mmsr_ray.planning.pipeline import Pipeline
from mmsr_ray.planning.services import Process, ToolPlane
from mmsr_ray.planning.settings import SERVICES

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "jobs" / "configs" / "plan_atlas.yaml"


def row(suite: str, beginning: str) -> dict:
    rows = json.loads((ROOT / "tests" / "baselines" / f"{suite}.json").read_text())["rows"]
    return next(r for r in rows if r["name"].startswith(beginning))


def latency(search: float, other: float) -> list[str]:
    """Every request takes so long, no more and no less."""
    of = {"text_search": search, "image_search": search}
    return [f"plan.{name}.median_seconds={of.get(name, other)}" for name in SERVICES]


# ---------------------------------------------------------------------------------------------------- suite=growth: the calibration


@pytest.mark.parametrize("flying", [32, 128, 512])
def test_the_engine_was_fitted_to_trajectories_in_flight(flying: int) -> None:
    """No prediction: three numbers, three costs. What is left over is the fit's."""
    instant = ["plan.driver.prompt_seconds=0", "plan.driver.group_seconds=0", "plan.steps=2", "plan.warm_up=1"]
    steps = Pipeline(load(CONFIG, [f"grpo.groups_per_step={flying // 8}", *instant])).play()
    spent = 1e6 * sum(s.generate + s.tools + s.idle for s in steps) / sum(s.sampled for s in steps)
    assert spent == pytest.approx(row("growth", f"microseconds per sampled token, {flying} ")["value"], rel=0.12)


# ---------------------------------------------------------------------------------------------------- suite=tools


def test_512_trajectories_under_a_rate_limit() -> None:
    limits = [
        f"tools.{name}.{what}" for name in ("image_search", "text_search") for what in ("rate_per_second=50", "burst=20", "concurrency=512")
    ]
    wide = [f"tools.{name}.{what}" for name in ("image_host", "reader", "summariser") for what in ("rate_per_second=0", "concurrency=512")]
    c = load(CONFIG, [*limits, *wide, *latency(0.6, 0.2), "agent.topk=5", "tools.actors=2", "tools.deadline_seconds=60"])
    env = simpy.Environment()
    tools = ToolPlane(env, c)

    def trajectory(number: int) -> Process:
        random = Random(number)
        assert (yield from tools.image(random, {}))
        assert (yield from tools.text(random, set(), 0))
        return True

    env.run(env.all_of([env.process(trajectory(number)) for number in range(512)]))
    assert env.now == pytest.approx(row("tools", "seconds until 512 trajectories")["value"], rel=0.03)


# ---------------------------------------------------------------------------------------------------- suite=training


@pytest.mark.parametrize(
    ("rollouts", "seconds", "tolerance"), [(8, 0.0, 0.2), (8, 0.2, 0.2), (8, 1.0, 0.1), (32, 0.0, 0.2), (32, 0.2, 0.2), (32, 1.0, 0.1)]
)
def test_a_grpo_step_of_scripted_rollouts(rollouts: int, seconds: float, tolerance: float) -> None:
    script = ["plan.policy.courses={answer: 0, 'image,answer': 0, 'image,text,answer': 0, 'text,answer': 1}", "plan.policy.turn_tokens=24"]
    load_of = [f"grpo.groups_per_step={rollouts // 8}", "agent.topk=1", "tools.actors=2", "plan.policy.turn_spread=0"]
    wide = [f"tools.{name}.rate_per_second=0" for name in ("text_search", "reader", "summariser")]
    c = load(CONFIG, [*script, *load_of, *wide, *latency(0.6 * seconds, 0.2 * seconds)])
    found = statistics.mean(step.total for step in Pipeline(c).play())
    said = f"{seconds:g} s" if seconds else "instant"
    assert found == pytest.approx(row("training", f"GRPO step against TRL, {rollouts} rollouts, {said} tools")["value"], rel=tolerance)


# ---------------------------------------------------------------------------------------------------- suite=asynchrony

SLOW = [f"plan.{name}.{what}" for name in SERVICES for what in ("median_seconds=0.2", "tail=1", "most_seconds=3")]
CACHES = {
    "image_search": 0.01,
    "thumbnails": 0.61,
    "text_search": 0.62,
    "reader": 0.78,
    "summariser": 0.37,
}  # shares of hits that its tools counted
ASYNCHRONY = [
    *SLOW,
    *(f"plan.{name}.known={share}" for name, share in CACHES.items()),
    "learner.world_size=1",
    "rollout.max_num_seqs=256",
    "grpo.groups_per_step=40",
    "plan.warm_up=2",
    "plan.steps=5",
]
MODES = {
    "sync": [],
    "async": ["grpo.staleness=1", "rollout.update=wait"],
    "in-flight": ["grpo.staleness=1", "rollout.update=keep"],
}


def measured_parts(mode: str) -> dict[str, float]:
    """The parts of a step that the committed row of a mode names."""
    said = row("asynchrony", f"seconds per training step, {mode}")["reference"]
    return {name: float(value) for name, value in re.findall(r"(generate|tools|learn|sync) ([0-9.]+)", said)}


def asynchrony(mode: str, contention: float) -> float:
    tokens = 31_000  # of a step, in the mean: 320 rows of 97
    learner = [f"plan.learner.token_seconds={measured_parts('sync')['learn'] / tokens / 1.25}", f"plan.learner.contention={contention}"]
    steps = Pipeline(load(CONFIG, [*ASYNCHRONY, *learner, *MODES[mode]])).play()
    assert max(step.staleness for step in steps) == len(MODES[mode]) // 2
    return statistics.mean(step.total for step in steps)


def test_a_synchronous_step_under_slow_tools() -> None:
    assert asynchrony("sync", 1.0) == pytest.approx(row("asynchrony", "seconds per training step, sync")["value"], rel=0.15)


@pytest.mark.parametrize("mode", ["async", "in-flight"])
def test_asynchronous_steps(mode: str) -> None:
    """On two cores learner and runner take time from each other: how much, the suite says (its learn seconds), and the model has to be told."""
    value = row("asynchrony", f"seconds per training step, {mode} ")["value"]
    contention = measured_parts(mode)["learn"] / measured_parts("sync")["learn"]
    assert asynchrony(mode, contention) == pytest.approx(value, rel=0.2)
    if mode == "in-flight":
        assert asynchrony(mode, 1.0) == pytest.approx(value, rel=0.3)  # untold
