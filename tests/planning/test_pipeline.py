"""The simulated run keeps the rules of the real one."""

from __future__ import annotations

import statistics

import pytest

from mmsr_ray.config import Config, load
from mmsr_ray.planning.pipeline import Pipeline, PlanError, Step, carried_seconds, learning_seconds
from mmsr_ray.planning.settings import SyncCosts

BASE = [
    "model.path=m",
    "data.train=t",
    "data.test=t",
    "agent.topk=1",
    "rollout.num_runners=2",
    "grpo.groups_per_step=16",
    "grpo.group_size=4",
    "learner.world_size=1",
    "plan.learner.token_seconds=0.0001",
    "plan.steps=4",
]


def config(*overrides: str) -> Config:
    return load(None, [*BASE, *overrides])


def play(*overrides: str) -> list[Step]:
    return Pipeline(config(*overrides)).play()


def mean(steps: list[Step], name: str = "total") -> float:
    return statistics.mean(getattr(step, name) for step in steps)


def test_a_step_is_the_sum_of_its_parts() -> None:
    for step in play("grpo.staleness=1", "plan.driver.step_seconds=0"):
        assert step.generate + step.tools + step.idle + step.learn + step.sync == pytest.approx(step.total, rel=1e-6)
        assert step.trajectories == 64


def test_equal_settings_give_equal_runs_and_another_seed_another() -> None:
    once = play()
    assert once == play()
    assert once != play("run.seed=1")


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_no_group_is_older_than_the_bound(staleness: int) -> None:
    """A slow learner keeps runners ahead as far as they may go."""
    steps = play(f"grpo.staleness={staleness}", "plan.learner.token_seconds=0.001", "plan.warm_up=3")
    assert max(step.staleness for step in steps) == staleness


def test_staleness_hides_the_smaller_half() -> None:
    sync, ahead = play(), play("grpo.staleness=1")
    halves = mean(sync, "generate") + mean(sync, "tools"), mean(sync, "learn")
    assert mean(ahead) < mean(sync) - 0.7 * min(halves)
    assert mean(ahead) > 0.9 * max(halves)


def test_more_runners_make_a_step_shorter_until_the_learner_is_all() -> None:
    one, four, many = (mean(play(f"rollout.num_runners={n}", "plan.text_search.median_seconds=0.01")) for n in (1, 4, 16))
    assert one > four > many
    assert many > mean(play("rollout.num_runners=16"), "learn")


def test_evaluation_stands_beside_the_step() -> None:
    steps = play("evaluation.every_steps=2", "evaluation.questions_during=40", "plan.warm_up=2")
    assert [step.evaluation > 0 for step in steps] == [False, True, False, True]  # after steps 4 and 6; versions count from 0
    assert mean(steps) == pytest.approx(mean(play("plan.warm_up=2")), rel=0.05)


def test_tools_that_cannot_keep_up_end_the_run_as_they_would() -> None:
    slow = ["tools.text_search.rate_per_second=0.01", "tools.text_search.burst=1", "tools.deadline_seconds=20"]
    with pytest.raises(PlanError, match=r"within grpo.step_seconds=600.*before tools.text_search until tools.deadline_seconds"):
        play(*slow, "grpo.step_seconds=600")


def test_learning_counts_scoring_and_optimiser_steps() -> None:
    costs = ["plan.learner.token_seconds=0.001", "plan.learner.optimiser_seconds=1", "plan.learner.balance=0.5", "grpo.minibatches=4"]
    with_kl = learning_seconds(1000, config(*costs, "grpo.loss.kl_coef=0.001"))
    assert with_kl == pytest.approx(1.0 * (1 + 0.25 + 0.25 * 3 / 4) / 0.5 + 4)
    assert learning_seconds(1000, config(*costs, "grpo.loss.kl_coef=0")) == pytest.approx(with_kl - 0.5)
    assert learning_seconds(1000, config(*costs, "learner.world_size=2", "grpo.loss.kl_coef=0")) == pytest.approx(1.1875 + 4)


def test_weights_travel_once_to_every_other_node() -> None:
    costs = SyncCosts(bytes=10e9, load_per_second=10e9, network_per_second=1e9, sharing=1.25, runners_per_node=8)
    assert carried_seconds(costs, 8) == pytest.approx(1.0)  # out of shared memory
    assert carried_seconds(costs, 16) == pytest.approx(10.0)  # one other node: nobody to share with
    assert carried_seconds(costs, 8 * 11) == pytest.approx(80.0)


def test_an_update_that_waits_lets_turns_finish() -> None:
    """What it waits for is the sync's, and a long one."""
    long = ["grpo.staleness=1", "plan.policy.turn_tokens=1500", "plan.policy.turn_spread=0", "plan.learner.token_seconds=0.000001"]
    kept, waited = play(*long, "rollout.update=keep"), play(*long, "rollout.update=wait")
    assert mean(waited, "sync") > 5 * mean(kept, "sync")


def test_colocated_turns_cost_their_hand_overs() -> None:
    shared = ["learner.colocated=true", "learner.world_size=2", "rollout.num_runners=2", "plan.sync.turn_seconds=0"]
    assert mean(play(*shared, "plan.sync.turn_seconds=5")) == pytest.approx(mean(play(*shared)) + 10, rel=0.01)
