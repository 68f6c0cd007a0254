"""Runners and a feeder that do what the uids of their prompts say: for what the real ones do too rarely to wait for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.rllib.env.env_runner import EnvRunner

from mmsr_ray.config import Config, DataConfig, ModelConfig
from mmsr_ray.tools.tape import TapeMiss
from mmsr_ray.types import GroupSummary, Ticket
from tests.algorithms.values import summary

BIG = 1 << 20  # bytes of a group that lies in the object store of its runner's node


def strikes_first(mark: Path) -> bool:
    first = not mark.exists()
    mark.touch()
    return first


class ScriptedRunner(EnvRunner):
    """Does with a prompt what the first word of its uid says; the ticket carries a file that marks a fault as having struck.

    A `slow` prompt is begun under the weights of the moment and finished once its file "<mark>.go" is there.
    """

    version = 0

    async def sample_group(self, ticket: Ticket, n: int, step: int) -> tuple[GroupSummary, Any]:
        kind, mark = ticket.uid.split("-")[0], Path(ticket.sample[0])
        first = strikes_first(mark)
        if kind == "kill" and first:
            os._exit(1)
        if kind == "hang" and first:
            await asyncio.sleep(3600)
        if kind == "late":
            await asyncio.sleep(2.0)
        if kind == "untaped":
            raise TapeMiss("the tape in here has no text search 'x'")
        if kind == "broken" or (kind == "error" and first):
            raise RuntimeError("this prompt breaks the runner's code")
        begun = self.version
        while kind == "slow" and not mark.with_suffix(".go").exists():  # noqa: ASYNC110 (the test is another process)
            await asyncio.sleep(0.01)
        spans = {"version_min": begun, "version_max": self.version}
        rows = [summary(uid=ticket.uid, index=i, correct=kind != "same" and i % 2 == 0, **spans) for i in range(n)]
        if kind == "broke":
            return GroupSummary(ticket.uid, ticket.epoch, tuple(rows), {"out_of_money": 1.0}), f"group of {ticket.uid}"
        await asyncio.sleep(0.01)
        if kind == "scarce" and strikes_first(mark.with_suffix(".answered")):  # not where another prompt kills this runner meanwhile
            rows = rows[:1]
        group = np.zeros(BIG, np.uint8) if kind == "big" else f"group of {ticket.uid}"
        return GroupSummary(ticket.uid, ticket.epoch, tuple(rows)), group

    async def sync_weights(self, version: int, invitation: Any = None) -> None:
        self.version = version

    async def ping(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] (as SearchEnvRunner does)
        return "pong"

    async def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = func(self, *args, **kwargs)
        return await result if asyncio.iscoroutine(result) else result

    async def stop(self) -> None: ...  # pyright: ignore[reportIncompatibleMethodOverride]

    def assert_healthy(self) -> None: ...

    def sample(self, **kwargs: Any) -> Any: ...

    def get_spaces(self) -> dict[str, Any]:
        return {}


@ray.remote(num_cpus=0)
class Feeder:
    """Hands out the uids in order, as a DataFeeder would: what `state` names again comes first."""

    def __init__(self, uids: list[str], marks: Path, state: dict[str, Any] | None) -> None:
        again = [uid for _, uid in state["again"]] if state else []
        rest = uids[state["rank"] :] if state else uids
        self.tickets = [Ticket(uid, 0, uids.index(uid), [str(marks / uid)]) for uid in (*again, *rest)]

    def state(self) -> dict[str, Any]:
        return {"questions": ""}

    def next_tickets(self, k: int) -> list[Ticket]:
        given, self.tickets = self.tickets[:k], self.tickets[k:]
        return given


def plain_config() -> Config:
    config = Config(model=ModelConfig(path="none"), data=DataConfig(train="", test=""))
    config.rollout.num_runners, config.rollout.cpus_per_runner = 2, 0.1
    config.grpo.group_size, config.grpo.loss_limit = 2, 2
    return config
