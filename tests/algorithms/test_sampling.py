"""The sampler against runners that misbehave on request: what the real engine does too rarely to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from mmsr_ray.algorithms import liveness
from mmsr_ray.algorithms.feed import Feed
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.ledger import Ledger
from mmsr_ray.algorithms.record import staleness_of
from mmsr_ray.algorithms.runners import RunnerGroup, RunnersLost
from mmsr_ray.algorithms.sampling import Sampler, SamplingError
from mmsr_ray.tools.errors import BudgetSpent
from mmsr_ray.tools.tape import TapeMiss
from tests.algorithms.scripted import Feeder, ScriptedRunner, plain_config

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def runners(cluster: None) -> Iterator[RunnerGroup]:
    """Two scripted runners for all tests here; the last test leaves them dead."""
    rllib = GRPOConfig.from_config(plain_config()).env_runners(env_runner_cls=ScriptedRunner)
    group = RunnerGroup(config=rllib, max_concurrency=100, start_seconds=120.0)
    group.wait_until_up()
    yield group
    group.stop()


@pytest.fixture
def sampler(runners: RunnerGroup, tmp_path: Path) -> Callable[..., Sampler]:
    """Makes a sampler over the runners and the given uids; `settings` are set on its config."""

    def make(uids: list[str], groups_per_step: int, settings: dict[str, Any] | None = None) -> Sampler:
        config = plain_config()
        config.grpo.groups_per_step = groups_per_step
        for key, value in (settings or {}).items():
            section, name = key.split(".")
            setattr(getattr(config, section), name, value)
        ledger = Ledger(groups_per_step, config.grpo.staleness, config.grpo.loss_limit, steps=9)
        feed = Feed(lambda state: Feeder.remote(uids, tmp_path, state), seed=0)  # type: ignore[arg-type]
        return Sampler(config, runners, feed, ledger, tend=lambda: None)

    return make


def collect(sampler: Sampler, seconds: float = 60.0) -> list[str]:
    return sorted(entry.ticket.uid for entry in sampler.collect(time.monotonic() + seconds))


def test_a_runner_that_hangs_is_replaced(sampler: Callable[..., Sampler], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsr_ray.algorithms.sampling.LATE_GRACE_SECONDS", 0.0)
    made = sampler(["hang-1", "plain-2"], 2, settings={"rollout.group_deadline_seconds": 1.0})
    assert collect(made) == ["hang-1", "plain-2"]
    assert made._ledger.reset_counts()["requeued"] >= 1


def test_lost_and_unusable_groups_come_again_under_the_same_uid(sampler: Callable[..., Sampler]) -> None:
    uids = ["plain-1", "kill-2", "error-3", "scarce-4", "plain-5", "plain-6"]
    made = sampler(uids, len(uids), settings={"grpo.loss_limit": 3})
    assert collect(made) == sorted(uids)
    assert made._ledger.reset_counts()["requeued"] >= 3
    assert made.infra_errors == 1, "of the group that came back with one survivor"
    assert sorted(ray.get([entry.result.group for entry in made._ledger.ready()])) == sorted(f"group of {uid}" for uid in uids)


def test_out_of_money_the_batch_ends_and_no_prompt_is_lost_or_sent_again(sampler: Callable[..., Sampler]) -> None:
    uids = ["plain-1", "broke-2", "plain-3", "plain-4"]
    made = sampler(uids, 4)
    with pytest.raises(BudgetSpent):
        made.collect(time.monotonic() + 60)
    for _ in range(3):
        made.pump(timeout=0.1)
    assert sorted(key[1] for key in made._ledger.charged_keys()) == sorted(uids)
    assert [entry.ticket.uid for entry in made._ledger.queued()] == ["broke-2"], "what ran may end, nothing is sent out any more"
    assert made._ledger.reset_counts() == {"requeued": 0, "filtered": 0, "given_up": 0}


def test_a_prompt_that_always_breaks_is_given_up_for_the_next(sampler: Callable[..., Sampler]) -> None:
    made = sampler(["broken-1", "plain-2", "plain-3"], 2)
    assert collect(made) == ["plain-2", "plain-3"]
    assert made._ledger.reset_counts() == {"requeued": 2, "filtered": 0, "given_up": 1}


def test_a_replay_ends_at_what_its_tape_lacks(sampler: Callable[..., Sampler]) -> None:
    made = sampler(["plain-1", "untaped-2"], 2)
    with pytest.raises(TapeMiss, match=r"prompt untaped-2: the tape in here has no text search 'x'$"):
        collect(made)
    assert made._ledger.reset_counts()["requeued"] == 0


def test_filtering_frees_the_charge_and_stops_at_its_limit(sampler: Callable[..., Sampler]) -> None:
    filtering = {"grpo.filter_groups": True, "grpo.filter_limit": 1}
    made = sampler(["same-1", "same-2", "same-3", "plain-4", "plain-5"], 2, settings=filtering)
    chosen = collect(made)
    assert made._ledger.reset_counts()["filtered"] == 2
    assert len(chosen) == 2


def test_a_feeder_that_dies_is_replaced_and_every_prompt_comes_once(sampler: Callable[..., Sampler]) -> None:
    made = sampler([f"plain-{i}" for i in range(12)], 3)
    seen = []
    for step in range(4):
        if step in (1, 2):  # once before it is asked, once with prompts out
            made.pump(timeout=0.0)
            ray.kill(made._feed.actor)
        batch = made.collect(time.monotonic() + 60)
        made._ledger.trained(batch)
        seen += [entry.ticket.uid for entry in batch]
    assert sorted(seen) == sorted(f"plain-{i}" for i in range(12))
    assert made._ledger.reset_counts()["given_up"] == 0


def test_a_batch_does_not_wait_for_a_head_that_does_not_answer(
    sampler: Callable[..., Sampler], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(liveness, "HEAD_SECONDS", 0.5)
    made = sampler([f"plain-{i}" for i in range(6)], 2)
    made._ledger.trained(made.collect(time.monotonic() + 60))
    (head,) = [process for process in psutil.Process().children(recursive=True) if process.name() == "gcs_server"]
    head.suspend()
    try:
        batch = made.collect(time.monotonic() + 20)
        made._ledger.trained(batch)
        assert [entry.ticket.uid for entry in batch] == ["plain-2", "plain-3"]
        assert collect(made, seconds=20) == ["plain-4", "plain-5"]
    finally:
        head.resume()
    assert caplog.text.count("the head of Ray does not answer") == 1, "each batch waits for it"


@pytest.mark.parametrize("staleness", [0, 2])
def test_runners_that_are_slow_hold_back_the_feeder(sampler: Callable[..., Sampler], tmp_path: Path, staleness: int) -> None:
    """However long nothing is finished, no more than (staleness + 1) * groups_per_step prompts are out."""
    uids = [f"slow-{i}" for i in range(20)]
    made = sampler(uids, 2, settings={"grpo.staleness": staleness})
    allowed = 2 * (staleness + 1)
    _pump_until(made, lambda: len(made._ledger.flying()) == allowed)
    for _ in range(5):
        made.pump(timeout=0.05)
    assert (made._ledger.charged, made._ledger.room) == (allowed, 0)
    assert [entry.ticket.uid for entry in made._ledger.flying()] == uids[:allowed]
    for uid in uids:
        (tmp_path / uid).with_suffix(".go").touch()
    assert len(collect(made)) == 2


def test_an_unfinished_group_is_carried_over_an_update_and_trained_within_the_bound(
    sampler: Callable[..., Sampler], runners: RunnerGroup, tmp_path: Path
) -> None:
    made = sampler(["slow-1", *(f"plain-{i}" for i in range(2, 9))], 2, settings={"grpo.staleness": 1})
    ledger = made._ledger
    runners.sync(0, timeout=60)
    first = made.collect(time.monotonic() + 60)
    assert "slow-1" not in [entry.ticket.uid for entry in first]
    _pump_until(made, lambda: len(ledger.ready()) == 3)  # the learner learns
    runners.sync(1, timeout=60)
    ledger.trained(first)
    assert [entry.ticket.uid for entry in ledger.flying()] == ["slow-1"]
    _pump_until(made, lambda: len(ledger.ready()) == 3 and ledger.charged == 4)
    assert ledger.take_batch() is None, "without the slow one no batch may go: it would be too old for the one after"
    (tmp_path / "slow-1").with_suffix(".go").touch()
    second = made.collect(time.monotonic() + 60)
    groups = [entry.result.summary for entry in second]
    (slow,) = [group for group in groups if group.uid == "slow-1"]
    assert {(row.version_min, row.version_max) for row in slow.trajectories} == {(0, 1)}
    assert staleness_of(groups, ledger.version, bound=1) == 1
    ledger.trained(second)
    assert ledger.reset_counts() == {"requeued": 0, "filtered": 0, "given_up": 0}
    runners.sync(0, timeout=60)


def _pump_until(sampler: Sampler, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        assert sampler._ledger.charged <= (sampler._ledger.staleness + 1) * sampler._ledger.groups_per_step
        sampler.pump(timeout=0.1)


def test_waiting_ends_in_an_error_and_not_in_a_hang(sampler: Callable[..., Sampler], runners: RunnerGroup) -> None:
    starved = sampler(["plain-1"], 2)
    with pytest.raises(SamplingError, match="1 of 2 groups ready"):
        collect(starved, seconds=2.0)
    runners._members.start_seconds = 3.0
    deserted = sampler(["plain-1", "plain-2"], 2)
    for runner in runners.ids():
        ray.kill(runners.actor(runner), no_restart=True)
        runners.mark_lost(runner)
    with pytest.raises(RunnersLost):
        collect(deserted)
