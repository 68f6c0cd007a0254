"""Plans, sizes, the job's page, and what is said about settings that cannot be."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import plan as job
from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.planning.pipeline import PlanError
from mmsr_ray.planning.plan import doubled, plan, step_seconds
from mmsr_ray.planning.settings import EngineCosts, LearnerCosts, PlanConfig, PolicyShape, ServiceCosts, SyncCosts, complaint
from mmsr_ray.planning.sizing import Size, _fewest, _lowest, for_gpus, for_target

ROOT = Path(__file__).parents[2]
BASE = [
    "model.path=m",
    "data.train=t",
    "data.test=t",
    "agent.topk=1",
    "rollout.num_runners=4",
    "grpo.groups_per_step=12",
    "grpo.group_size=4",
    "learner.world_size=1",
    "plan.steps=2",
    "plan.warm_up=1",
]
GPUS = ["rollout.gpus_per_runner=1", "learner.gpus_per_rank=1"]


def config(*overrides: str) -> Config:
    return load(None, [*BASE, *overrides])


# ---------------------------------------------------------------------------------------------------- what a plan says


@pytest.mark.parametrize(
    ("settings", "bottleneck"),
    [
        (["plan.learner.token_seconds=0.01"], "learner"),
        (["plan.engine.step_seconds=0.5"], "engines"),
        (["plan.text_search.median_seconds=50", "plan.text_search.tail=0", "tools.text_search.timeout_seconds=90"], "services' latencies"),
        (["tools.text_search.rate_per_second=0.5", "tools.text_search.burst=1", "tools.deadline_seconds=400"], "services' limits"),
        (["plan.tool_actor.request_seconds=0.5", "tools.actors=1", "tools.deadline_seconds=900"], "tool actors"),
        (["plan.sync.bytes=1e12"], "weight sync"),
        (["plan.driver.group_seconds=20"], "driver and data feeder"),
    ],
)
def test_the_bottleneck_is_named(settings: list[str], bottleneck: str) -> None:
    found = plan(config(*settings))
    assert found.bottleneck == bottleneck, found.what_if


def test_money() -> None:
    prices = [
        "tools.text_search.price.per_call=0.01",
        "tools.summariser.price.per_million_input_tokens=2",
        "plan.summariser.input_tokens=5000",
    ]
    found = plan(config(*prices, *GPUS, "plan.gpu_hour_usd=2", "grpo.steps=10"), what_if=False)
    by_name = {service.name: service for service in found.services}
    assert by_name["text_search"].usd == pytest.approx(0.01 * by_name["text_search"].requests)
    assert by_name["summariser"].usd == pytest.approx(0.01 * by_name["summariser"].requests)
    assert found.usd_gpus == pytest.approx(5 * 2 * found.seconds["total"] / 3600)
    assert found.hours == pytest.approx(10 * found.seconds["total"] / 3600)


def test_a_budget_that_does_not_last_is_said() -> None:
    paid = ["tools.text_search.price.per_call=0.01", "grpo.steps=100"]
    cost = plan(config(*paid), what_if=False).usd_tools
    (said,) = plan(config(*paid, f"tools.budget_usd={2.5 * cost}"), what_if=False).remarks
    assert "pays for 2 of 100 steps" in said


def test_a_run_that_has_not_settled_is_said() -> None:
    (said,) = plan(config("grpo.staleness=1"), what_if=False).remarks
    assert "plan.warm_up=1 steps do not settle" in said
    assert not plan(config("grpo.staleness=1", "plan.warm_up=2"), what_if=False).remarks


def test_rollouts_lost_to_tools_are_said() -> None:
    found = plan(config("plan.text_search.failure_rate=0.7", "tools.attempts=1", "rollout.min_survivors=2"), what_if=False)
    assert found.lost > 0.1
    assert any("lost to tools" in remark for remark in found.remarks)


# ---------------------------------------------------------------------------------------------------- how many


def test_the_fewest_runners_for_a_target_are_enough_and_one_less_is_not() -> None:
    c = config("plan.engine.step_seconds=0.02", "plan.learner.token_seconds=0.00001", "plan.text_search.median_seconds=0.1")
    target = 1.001 * step_seconds(Size(5, 1, 2, 0.0).of(c))
    size = for_target(c, target)
    assert 1 < size.runners <= 5
    assert size.seconds == step_seconds(size.of(c)) <= target
    assert step_seconds(replace(size, runners=size.runners - 1, tool_actors=2).of(c)) > target


def test_a_target_that_nothing_reaches_names_what_holds_it_up() -> None:
    with pytest.raises(PlanError, match=r"no number of runners .* what holds it up is: learner"):
        for_target(config("plan.learner.token_seconds=0.01"), 60.0)


def test_gpus_are_split_where_a_step_is_shortest() -> None:
    c = config(*GPUS, "plan.learner.token_seconds=0.003", "plan.engine.sequence_seconds=0.02")
    size = for_gpus(c, 8)
    assert size.runners + size.ranks == 8
    for ranks in (size.ranks - 1, size.ranks + 1):
        assert step_seconds(Size(8 - ranks, ranks, 2, 0.0).of(c)) > size.seconds


def test_searches() -> None:
    assert [_fewest(100, lambda n, least=least: n >= least) for least in (1, 2, 7, 64, 100, 101)] == [1, 2, 7, 64, 100, None]
    assert _lowest(1, 1000, lambda n: (n - 321) ** 2) == 321


# ---------------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["rollout.num_runners=0"], "nobody rolls out; set at least 1"),
        (["rollout.num_runners=13"], "13 runners share at most 12 groups"),
        (["tools.text_search.rate_per_second=0.001"], "a step asks tools.text_search .* longer than grpo.step_seconds"),
        (["tools.reader.rate_per_second=0.002"], "a step asks tools.reader"),
        (["agent.max_turns=2", "agent.allowed_paths=[answer]"], "longer than agent.max_turns=2"),
        (["plan.policy.text_tokens=20000"], "above agent.max_total_tokens"),
        (["plan.engine.kv_tokens=1000"], "has no room for one rollout"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_is_a_sentence(settings: list[str], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        plan(config(*settings))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"policy": PolicyShape(courses={"answer": 0.1})}, "plan.policy.courses add up to 0.1 and not to 1"),
        ({"policy": PolicyShape(courses={"dance": 1.0})}, "plan.policy.courses has ['dance']"),
        ({"engine": EngineCosts(step_seconds=0.0)}, "plan.engine.step_seconds must be above 0"),
        ({"reader": ServiceCosts(failure_rate=1.0)}, "plan.reader.failure_rate must be at least 0 and below 1"),
        ({"text_search": ServiceCosts(known=2.0)}, "plan.text_search.known must lie between 0 and 1"),
        ({"sync": SyncCosts(network_per_second=0.0)}, "plan.sync: rates must be above 0"),
        ({"learner": LearnerCosts(balance=0.0)}, "plan.learner.balance"),
    ],
)
def test_a_setting_that_cannot_be_is_a_sentence(section: dict[str, Any], said: str) -> None:
    assert complaint(PlanConfig()) == ""
    assert complaint(replace(PlanConfig(), **section)).startswith(said)


def test_a_config_refuses_them_at_start() -> None:
    with pytest.raises(ConfigError, match=r"plan\.steps must be at least 1"):
        config("plan.steps=0")


@pytest.mark.parametrize(
    ("gpus", "settings", "said"),
    [
        (1, GPUS, "does not hold one runner and one rank"),
        (8, [], "set rollout.gpus_per_runner and learner.gpus_per_rank"),
        (8, ["learner.colocated=true", "learner.world_size=4"], "learner.colocated=true has none"),
    ],
)
def test_a_split_that_cannot_be_is_a_sentence(gpus: int, settings: list[str], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        for_gpus(config(*settings), gpus)


def test_doubling_never_makes_a_step_much_longer() -> None:
    c = config()
    assert all(w.saved > -0.1 for w in doubled(c, step_seconds(c)))


# ---------------------------------------------------------------------------------------------------- the job


def run_job(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
    return job.main()


def test_the_job_prints_tables_and_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "jobs" / "configs" / "plan_atlas.yaml")
    assert run_job(monkeypatch, "--config", file, f"run.dir={tmp_path}", "plan.target_seconds=2") == 0
    shown = capsys.readouterr().out
    assert "bottleneck: learner" in shown
    assert "fewest for a step of 2 s" in shown
    written = json.loads((tmp_path / "plans" / "atlas.json").read_text())
    assert written["plan"]["bottleneck"] == "learner"
    assert written["sizes"]["fewest for a step of 2 s"]["runners"] == 1


@pytest.mark.parametrize("name", ["plan_paper", "plan_1000_gpus"])
def test_the_recipes_load(name: str) -> None:
    assert load(ROOT / "jobs" / "configs" / f"{name}.yaml").plan.policy.turn_tokens == 120


def test_the_job_says_what_to_mend(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    file = str(ROOT / "jobs" / "configs" / "plan_atlas.yaml")
    assert run_job(monkeypatch, "--config", file, "rollout.num_runners=0") == 2
    assert "nobody rolls out" in caplog.text
