"""The sampler against runners that misbehave on request: what the real engine does too rarely to wait for."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray.rllib.env.env_runner import EnvRunner

from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.ledger import Ledger
from mmsr_ray.algorithms.runners import RunnerGroup, RunnersLost
from mmsr_ray.algorithms.sampling import Sampler, SamplingError
from mmsr_ray.config import Config, DataConfig, ModelConfig
from mmsr_ray.types import GroupSummary, Ticket
from tests.algorithms.values import summary

pytestmark = pytest.mark.heavy


class ScriptedRunner(EnvRunner):
    """Does with a prompt what the first word of its uid says. A fault strikes the first process of the runner only."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.young = not ray.get_runtime_context().was_current_actor_reconstructed
        self.failed: set[str] = set()
        self.version = -1

    async def sample_group(self, ticket: Ticket, n: int, step: int) -> tuple[GroupSummary, str]:
        kind = ticket.uid.split("-")[0]
        if kind == "kill" and self.young:
            os._exit(1)
        if kind == "hang" and self.young:
            await asyncio.sleep(3600)
        if kind == "broken" or (kind == "error" and ticket.uid not in self.failed):
            self.failed.add(ticket.uid)
            raise RuntimeError("this prompt breaks the runner's code")
        rows = [summary(uid=ticket.uid, index=i, correct=i % 2 == 0, version_min=self.version, version_max=self.version) for i in range(n)]
        if kind == "same":
            rows = [summary(uid=ticket.uid, index=i, correct=False, reward=0.1 * i) for i in range(n)]
        if kind == "scarce" and ticket.uid not in self.failed:
            self.failed.add(ticket.uid)
            rows = rows[:1]
        await asyncio.sleep(0.01)
        return GroupSummary(ticket.uid, ticket.epoch, tuple(rows)), f"group of {ticket.uid}"

    async def sync_weights(self, version: int) -> None:
        self.version = version

    async def ping(self) -> str:
        return "pong"

    async def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = func(self, *args, **kwargs)
        return await result if asyncio.iscoroutine(result) else result

    async def stop(self) -> None: ...

    def assert_healthy(self) -> None: ...

    def sample(self, **kwargs: Any) -> Any: ...

    def get_spaces(self) -> dict[str, Any]:
        return {}


@ray.remote(num_cpus=0)
class Feeder:
    def __init__(self, uids: list[str]) -> None:
        self.tickets = [Ticket(uid, 0, rank, []) for rank, uid in enumerate(uids)]

    def next_tickets(self, k: int) -> list[Ticket]:
        given, self.tickets = self.tickets[:k], self.tickets[k:]
        return given


@pytest.fixture
def sampler(cluster: None) -> Iterator[Callable[..., Sampler]]:
    """Makes a sampler over two scripted runners and the given uids; `settings` are set on its config."""
    groups: list[RunnerGroup] = []

    def make(uids: list[str], groups_per_step: int, *, start_seconds: float = 60.0, settings: dict[str, Any] | None = None) -> Sampler:
        config = Config(model=ModelConfig(path="none"), data=DataConfig(train="", test=""))
        config.rollout.num_runners, config.rollout.cpus_per_runner = 2, 0.1
        config.grpo.groups_per_step, config.grpo.group_size, config.grpo.loss_limit = groups_per_step, 2, 2
        for key, value in (settings or {}).items():
            section, name = key.split(".")
            setattr(getattr(config, section), name, value)
        rllib = GRPOConfig.from_config(config).env_runners(env_runner_cls=ScriptedRunner)
        runners = RunnerGroup(config=rllib, max_concurrency=100, start_seconds=start_seconds)
        groups.append(runners)
        runners.wait_until_up()
        ledger = Ledger(groups_per_step, config.grpo.staleness, config.grpo.loss_limit, steps=9)
        return Sampler(config, runners, Feeder.remote(uids), ledger, lambda ids: runners.sync(0, only=ids, timeout=30))  # type: ignore[arg-type]

    yield make
    for group in groups:
        group.stop()


def collect(sampler: Sampler, seconds: float = 60.0) -> list[str]:
    return sorted(entry.ticket.uid for entry in sampler.collect(time.monotonic() + seconds))


def test_lost_and_unusable_groups_come_again_under_the_same_uid(sampler: Callable[..., Sampler]) -> None:
    uids = ["plain-1", "kill-2", "error-3", "scarce-4", "plain-5", "plain-6"]
    made = sampler(uids, len(uids), settings={"grpo.loss_limit": 6})  # both runners die once, and fail each faulty prompt once
    assert collect(made) == sorted(uids)
    assert made._ledger.reset_counts()["requeued"] >= 3
    assert made.infra_errors >= 1, "of the group that came back with one survivor"
    assert sorted(ray.get([entry.result.group for entry in made._ledger.ready()])) == sorted(f"group of {uid}" for uid in uids)


def test_a_prompt_that_always_breaks_is_given_up_for_the_next(sampler: Callable[..., Sampler]) -> None:
    made = sampler(["broken-1", "plain-2", "plain-3"], 2)
    assert collect(made) == ["plain-2", "plain-3"]
    assert made._ledger.reset_counts() == {"requeued": 2, "filtered": 0, "given_up": 1}


def test_filtering_frees_the_charge_and_stops_at_its_limit(sampler: Callable[..., Sampler]) -> None:
    filtering = {"grpo.filter_groups": True, "grpo.filter_limit": 1}
    made = sampler(["same-1", "same-2", "same-3", "plain-4", "plain-5"], 2, settings=filtering)
    chosen = collect(made)
    assert made._ledger.reset_counts()["filtered"] == 2
    assert len(chosen) == 2
    assert set(chosen) <= {"same-3", "plain-4", "plain-5", "same-1", "same-2"}


def test_a_runner_that_hangs_is_replaced(sampler: Callable[..., Sampler], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsr_ray.algorithms.sampling.LATE_GRACE_SECONDS", 0.0)
    made = sampler(["hang-1", "plain-2"], 2, settings={"rollout.group_deadline_seconds": 1.0})
    assert collect(made) == ["hang-1", "plain-2"]


def test_waiting_ends_in_an_error_and_not_in_a_hang(sampler: Callable[..., Sampler]) -> None:
    starved = sampler(["plain-1"], 2)
    with pytest.raises(SamplingError, match="1 of 2 groups ready"):
        collect(starved, seconds=2.0)
    deserted = sampler(["plain-1", "plain-2"], 2, start_seconds=3.0)
    for runner in deserted._runners.ids():
        ray.kill(deserted._runners.actor(runner), no_restart=True)
        deserted._runners.mark_lost(runner)
    with pytest.raises(RunnersLost):
        collect(deserted)
