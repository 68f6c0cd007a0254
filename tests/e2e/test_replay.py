"""A training run recorded, and repeated without a web: the same rollouts, the same numbers, the same weights.

The second run is colocated, which may change nothing either: runner and learner take turns. A real Prometheus watches the first one,
so that the dashboard and the alerts are tried on a run that searches, without another start of everything.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from huggingface_hub import save_torch_state_dict
from ray.util.state import list_actors

from mmsr_ray.algorithms.demonstrations import items_of
from mmsr_ray.algorithms.grpo import GRPO
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.sft import batches
from mmsr_ray.atlas.prepare import demonstrations, point_at, prepare, start_web
from mmsr_ray.config import Config, load
from mmsr_ray.evaluation.trajectories import read_trajectories
from mmsr_ray.learner.batch import Row
from mmsr_ray.learner.model import load_policy, named_weights
from mmsr_ray.learner.pictures import PatchCache, VisionGeometry
from mmsr_ray.learner.plan import UpdatePlan, plan_update
from mmsr_ray.learner.step import fit
from mmsr_ray.observability.dashboard.alerts import Patience, alerts
from mmsr_ray.observability.dashboard.panels import CLUSTER, TOOLS, TRAINING
from mmsr_ray.observability.dashboard.rules import rule_file
from mmsr_ray.tools.actor import RemoteTools, start_tools, stop_tools
from tests.e2e.held import NOISE, held
from tests.prometheus import INSTALLED, Prometheus, needed, prometheus

pytestmark = pytest.mark.heavy
RECIPE = Path(__file__).parents[2] / "jobs" / "configs" / "atlas.yaml"
DIFFERS = {
    "turns",
    "seconds",
    "response_seconds",
    "seconds_left",
    "tokens_per_second",
    "tools",
    "cost_usd",
    "saved_usd",
}  # times, and what the tools did for it
HOLDS = ("training questions say what they need (Atlas)", "tools.budget_usd > 0", "a service has a price")  # of the dashboard's conditions
WATCH_SECONDS = 120.0
WARM_STEPS = 2  # after which a step leaves nothing behind
STILL_SECONDS = 6.0  # until a step counts as stalled: longer than Ray remembers a gauge that is not told again


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """Atlas in small with a policy that was shown how to search; its tools name a web that is not there yet."""
    ray.init(
        num_cpus=4, include_dashboard=INSTALLED, object_store_memory=400 << 20, namespace="mmsr", logging_level=logging.WARNING,
        _system_config={"metrics_report_interval_ms": 1_000},
    )  # fmt: skip
    settings = {
        "run.dir": tmp_path_factory.mktemp("runs"),
        "run.trackers": "[]",
        "atlas.train_questions": 40,
        "atlas.test_questions": 8,
        "grpo.steps": 6,
        "grpo.groups_per_step": 4,
        "grpo.group_size": 4,
        "grpo.groups_kept": 4,
        "grpo.lr": 1e-3,
        "rollout.cpus_per_runner": 0.5,
        "learner.world_size": 1,
        "evaluation.workflows": "[rag]",
        "tools.actors": 2,
        "tools.budget_usd": 100,
        "tools.text_search.price.per_call": 0.001,
    }
    made = load(RECIPE, [f"{key}={value}" for key, value in settings.items()])
    prepare(made)
    _show_how_to_search(made)
    yield made
    ray.shutdown()


def _show_how_to_search(config: Config) -> None:
    """A minute's worth of the warm start, in this process: enough for searches, far too little for good answers."""
    groups = demonstrations(config, 0, 64)
    items = [items_of(group) for group in groups]
    policy = load_policy(config.model.path, dtype=torch.float32, gradient_checkpointing=False)

    def plans() -> Iterator[tuple[UpdatePlan, list[list[Row]]]]:
        for batch in batches([len(i) for i in items], batch_size=8, seed=0, steps=50):
            chosen = [replace(items[g][i], group=place) for place, (g, i) in enumerate(batch)]
            yield (
                plan_update(chosen, world_size=1, micro_batch_tokens=4096, loss="sft", lr=3e-3),
                [[Row(t.tokens, 1.0) for t in groups[g].trajectories] for g, _ in batch],
            )

    cache = PatchCache(VisionGeometry.load(Path(config.model.path)))
    for _ in fit(policy, torch.optim.AdamW(policy.parameters(), betas=(0.9, 0.98)), plans(), cache):
        pass
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in named_weights(policy).items()}
    save_torch_state_dict(weights, config.model.path)


def run(config: Config, before_the_last: Callable[[], None] = lambda: None) -> tuple[Path, dict[str, float]]:
    """Train with tools of its own; the run folder, and what the tools counted. `before_the_last` is called before the last step.

    What the steps hold is given back: growth of memory that is not a cache is found here, long before it can be seen in bytes.
    """
    tools = start_tools(config)
    algorithm = GRPOConfig.from_config(config).build_algo()
    assert isinstance(algorithm, GRPO)
    try:
        for _ in range(WARM_STEPS):
            algorithm.train()
        before = held(algorithm)
        for _ in range(config.grpo.steps - WARM_STEPS - 1):
            algorithm.train()
        left = held(algorithm) - before
        before_the_last()
        algorithm.train()
        counts = _stats(tools)
    finally:
        algorithm.stop()
        stop_tools(config)
    assert not {what: more for what, more in left.items() if more > NOISE.get(what, 0)}, "a step leaves something behind"
    return Path(config.run.dir, config.run.name), counts


def _stats(tools: RemoteTools) -> dict[str, float]:
    import asyncio

    return asyncio.run(tools.stats())


def taped(config: Config, name: str, mode: str, base: str) -> Config:
    tools = point_at(config.tools, base)
    folder = str(Path(config.run.dir) / "tape")
    return replace(config, run=replace(config.run, name=name), tools=replace(tools, tape=replace(tools.tape, mode=mode, dir=folder)))


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in DIFFERS} for line in lines]


def rows(folder: Path) -> list[dict[str, Any]]:
    """Without seconds and money, which a replay has of its own."""
    files = sorted((folder / "rows").glob("*.json"))
    return [_timeless(row) | {"per_question": _timeless(row["per_question"])} for file in files for row in json.loads(file.read_text())]


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.endswith("seconds") and "usd" not in key}


def sampled(folder: Path) -> list[tuple[Any, ...]]:
    """Who said what: one entry per trajectory that was kept, evaluations included."""
    kept = read_trajectories(folder / "trajectories")
    return sorted((str(t.step), t.uid, t.index, t.workflow, repr([turn.text for turn in t.turns]), str(t.reward)) for t in kept)


@dataclass
class Watched:
    """What a Prometheus saw of a run, when training stood still before its last step."""

    missing: list[str] = field(default_factory=list)  # queries without data
    rules: dict[str, str] = field(default_factory=dict)  # alert -> health
    firing: set[str] = field(default_factory=set)
    actors: set[str] = field(default_factory=set)  # as Ray's dashboard calls them

    def look(self, at: Prometheus) -> None:
        listed: Any = list_actors(address=ray.get_runtime_context().gcs_address, detail=True)
        self.actors = {actor.repr_name or actor.name for actor in listed if actor.state == "ALIVE"}
        deadline = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline:
            self.missing = at.missing([*TRAINING, *TOOLS, *CLUSTER], HOLDS)
            self.rules, self.firing = at.rules(), at.firing()
            if not self.missing and "MMSRStepStalled" in self.firing:
                return
            time.sleep(1.0)


@dataclass
class Recorded:
    folder: Path
    counts: dict[str, float]
    base: str  # of the web that is gone
    watched: Watched


@pytest.fixture(scope="module")
def recorded(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    web = start_web(config.atlas)
    watched = Watched()
    recording = taped(config, "recorded", "record", web.base)
    try:
        if INSTALLED:
            rules = rule_file(alerts(Patience(factor=0, seconds=STILL_SECONDS))).replace("for: 1m", "for: 1s")
            found = {"file_sd_configs": [{"files": [str(discovery())]}]}
            with prometheus(tmp_path_factory.mktemp("prometheus"), found, rules) as here:
                folder, counts = run(recording, lambda: watched.look(here))
        else:
            folder, counts = run(recording)
    finally:
        web.stop()
    return Recorded(folder, counts, web.base, watched)


def discovery() -> Path:
    """Where Ray writes what is to be scraped."""
    return Path(ray.get_runtime_context().get_temp_dir(), "prom_metrics_service_discovery.json")


@needed
def test_every_panel_has_data_and_a_stalled_step_fires(recorded: Recorded) -> None:
    watched = recorded.watched
    assert watched.missing == []
    assert watched.rules == {alert.name: "ok" for alert in alerts(Patience())}
    assert "MMSRStepStalled" in watched.firing
    assert watched.actors >= {"runner 1 of recorded", "learner rank 0 of recorded", "tools:recorded:0", "tools:recorded:quota"}
    assert not watched.firing & {"MMSRNotFinite", "MMSRTooStale", "MMSRToolsFailing", "MMSRBudgetNearlySpent", "MMSRRunGone"}


def test_a_replayed_run_is_the_recorded_one_bit_by_bit(config: Config, recorded: Recorded) -> None:
    first, counts = recorded.folder, recorded.counts
    assert counts["tape.recorded"] > 10, "a run without searches proves nothing"
    assert sum(record["searches_text"] + record["searches_image"] for record in records(first)) > 0
    assert len({record["grad_norm"] for record in records(first)}) == config.grpo.steps, "and neither does one that learned nothing"

    colocated = replace(config, learner=replace(config.learner, colocated=True))
    second, replayed = run(taped(colocated, "replayed", "replay", recorded.base))
    lines = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert all(set(line["turns"]) == {"engines_leave", "learner_returns", "learner_leaves", "engines_return"} for line in lines)
    assert replayed["tape.hits"] == counts["tape.recorded"] + counts.get("tape.hits", 0)
    assert replayed.get("tape.misses", 0) == replayed.get("text_search.requests", 0) == replayed.get("image_search.requests", 0) == 0
    assert sampled(second) == sampled(first)
    assert records(second) == records(first)
    assert rows(second) == rows(first)
    assert (second / "model" / "model.safetensors").read_bytes() == (first / "model" / "model.safetensors").read_bytes()
