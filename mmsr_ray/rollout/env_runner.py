"""An RLlib EnvRunner that owns one vLLM engine and runs hundreds of episodes on it as coroutines.

Promises. No prompt is served before the engine holds the newest published weights. A trajectory that infrastructure
broke is run anew here, then dropped; it never gets a reward. A group's deadline drops what is unfinished and keeps the
rest. When the engine dies the process exits, so that Ray restarts it and callers see a dead actor, not bad data.
All methods run on the actor's one event loop, to which the engine is bound.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner import EnvRunner

from mmsr_ray.agent.episode import InputError, Tools, run_episode
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.seeds import seed_of
from mmsr_ray.config import Config, RewardConfig, from_dict
from mmsr_ray.evaluation.settings import sampling
from mmsr_ray.metrics.catalogue import ENGINE_REQUESTS
from mmsr_ray.metrics.exported import gauge
from mmsr_ray.rewards.judge import Judge
from mmsr_ray.rewards.score import reward_in_evaluation
from mmsr_ray.rollout.activity import ActivityClock, Reading, State, TimedGenerate, TimedTools
from mmsr_ray.rollout.bunches import Bunches
from mmsr_ray.rollout.engine import EngineDead, VLLMEngine
from mmsr_ray.rollout.scoring import AFTER_WARMUP, raise_if_not_on_tape, scored
from mmsr_ray.rollout.summary import summarise
from mmsr_ray.tools.actor import RemoteTools
from mmsr_ray.types import Group, GroupSummary, Outcome, Sample, Sampling, Ticket, Trajectory, TrajectorySummary
from mmsr_ray.weights.collective import Invitation
from mmsr_ray.weights.store import NO_VERSION, find_store, store_name

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.5  # between looks at the engine's health
STORE_SECONDS = 60.0  # the weight store must answer within this time
RETRY_SECONDS = 0.2  # before the second attempt at a trajectory; doubles, with jitter


class SearchEnvRunner(Bunches, EnvRunner):
    """`config.settings` is the run's Config as plain containers. `config.runtime["store"]` names the WeightStore; left
    out it is `store_name(config)`, and None means weights that never change.
    """

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        extra = vars(config)
        self._settings: Config = from_dict(extra["settings"])
        self._store: str | None = extra.get("runtime", {}).get("store", store_name(self._settings.run.name))
        seed = self._settings.run.seed + (self.worker_index or 0)  # runners must not sample alike
        self._engine = VLLMEngine(self._settings, self._store, self._settings.run.namespace, seed=seed)
        self._prompts = PromptSet.load(self._settings.agent.prompts)
        self._tools: Tools | None = None
        self._judge: Judge | None = None
        self._starting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._counts: Counter[str] = Counter()
        self._activity = ActivityClock()
        self._at_gate = False  # waiting until an engine may start
        self._times_sent_away = 0

    def __repr__(self) -> str:
        return f"runner {self.worker_index or 0} of {self._settings.run.name}"  # in Ray's dashboard and logs

    # ------------------------------------------------------------------------------------------------ life

    def connect_tools(self) -> Tools:
        """The run's tool actors. A seam for runs with tools of their own."""
        return RemoteTools.connect(self._settings)

    def connect_judge(self) -> Judge | None:
        """Who decides about answers that the rule rejects; None where rules alone do."""
        return RemoteTools.connect(self._settings) if self._settings.tools.judge.kind != "none" else None

    async def ready(self) -> None:
        """Wait until prompts can be served; the first call starts the engine. Raises what the start raised."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        self._tools, self._judge = self.connect_tools(), self.connect_judge()
        if self._store is not None and self._settings.learner.colocated:
            await self._wait_at_gate(self._store)
        await self._engine.start()
        if self._store is not None:
            latest = await _ask(self._store, self._settings.run.namespace, "latest")
            if latest != NO_VERSION:
                await self._engine.sync(latest)
        self._watching = asyncio.create_task(self._watch())

    async def _wait_at_gate(self, store: str) -> None:
        """Until an engine may take device memory. The driver watches how long: it kills who stays away too long in the engines' turn."""
        self._at_gate = True
        while True:
            sent_away = self._times_sent_away  # an answer that was under way when the gate was shut does not count
            if await _ask(store, self._settings.run.namespace, "engines_let_in") and sent_away == self._times_sent_away:
                break
            await asyncio.sleep(WATCH_SECONDS)
        self._at_gate = False

    async def leave_device(self) -> None:
        """Give up the device until the next `sync_weights`. One that has no engine yet starts none; one that starts it, finishes first."""
        self._times_sent_away += 1
        if self._starting is None or self._at_gate:
            return
        await self.ready()
        await self._engine.leave()

    async def _watch(self) -> None:
        inside = gauge(ENGINE_REQUESTS, {"run": self._settings.run.name, "runner": str(self.worker_index or 0)})
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            inside.set(self._engine.requests)
            await self._exit_if_dead()

    async def _exit_if_dead(self) -> None:
        try:
            await self._engine.check()
        except EngineDead as error:
            logger.critical("this runner exits, to be restarted: %s", error)
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(1)  # not sys.exit: nothing must wait for a dead engine, and pending calls must fail as calls to a dead actor

    async def ping(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] (an asyncio actor, to its callers the same)
        """Answers once prompts can be served."""
        await self.ready()
        return "pong"

    def assert_healthy(self) -> None:
        assert self._prompts is not None

    async def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """RLlib's entry point. Unlike the inherited one it keeps the loop free and the process alive when `func` raises."""
        result = func(self, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    async def stop(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """End the engine. The actor can be killed afterwards."""
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.to_thread(self._engine.stop)

    # ------------------------------------------------------------------------------------------------ weights

    async def sync_weights(self, version: int, invitation: Invitation | None = None) -> dict[str, float]:
        """Load a published version; seconds by part (`VLLMEngine.sync`). Raises EngineDead, upon which this process exits."""
        await self.ready()
        with self._activity.during(State.SYNC):
            seconds = await self._engine.sync(version, invitation)
        self._counts["sync_milliseconds"] += round(1000 * seconds["total"])
        return seconds

    async def load_weights(self, version: int, handles: bytes) -> None:
        """Load a version from the memory of the rank on this runner's card, while away (`VLLMEngine.load`)."""
        await self.ready()
        with self._activity.during(State.SYNC):
            await self._engine.load(version, handles)

    async def version(self) -> int:
        await self.ready()
        return await self._engine.version()

    # ------------------------------------------------------------------------------------------------ training

    async def sample_group(self, ticket: Ticket, n: int, step: int, direct: int = 0) -> tuple[GroupSummary, Group]:
        """`n` scored rollouts of one prompt, fewer where infrastructure broke them. Call it with `num_returns=2`.

        `step` counts training steps from 1. The first `direct` rollouts get no tools (training has none of those). Below `rollout.min_survivors` the summary's metrics hold {"dropped": 1.0},
        and {"out_of_money": 1.0} where a search was refused because the budget is spent.
        """
        await self.ready()
        began = time.monotonic()
        sample = await _fetch(ticket, self._settings.rollout.group_deadline_seconds)
        tasks = [
            asyncio.create_task(
                self._trajectory(sample, i, "direct" if i < direct else "on_demand", self._sampling(ticket, i), self._settings.reward, step)
            )
            for i in range(n)
        ]
        ended = await self._before_deadline(tasks, ticket.uid)
        survivors = [t for t in ended if t.outcome is not Outcome.INFRA_ERROR]
        summaries = tuple(summarise(t, sample) for t in survivors)
        metrics = {"seconds": time.monotonic() - began, "infra_errors": float(n - len(survivors))}
        if any(t.out_of_money for t in ended):
            metrics["out_of_money"] = 1.0
        if len(survivors) < self._settings.rollout.min_survivors:
            metrics["dropped"] = 1.0
        self._counts["groups"] += 1
        self._counts["trajectories"] += len(survivors)
        self._counts["infra_errors"] += n - len(survivors)
        return GroupSummary(ticket.uid, ticket.epoch, summaries, metrics), Group(ticket.uid, ticket.epoch, sample, tuple(survivors))

    def _sampling(self, ticket: Ticket, index: int) -> Sampling:
        """Seeded by what the rollout is, and not by the attempt: one that infrastructure broke is the same one when it is run anew."""
        seed = self._settings.run.seed if self._settings.rollout.seeded else None
        seed = seed_of(seed, ticket.epoch, ticket.uid, index)
        return Sampling(self._settings.rollout.temperature, self._settings.agent.max_turn_tokens, seed)

    async def _before_deadline(self, tasks: list[asyncio.Task[Trajectory]], uid: str) -> list[Trajectory]:
        """Finished trajectories, by index. The rest is cancelled; an error that is not of the sample's making is raised."""
        limit = self._settings.rollout.group_deadline_seconds
        try:
            done, late = await asyncio.wait(tasks, timeout=limit)
        finally:
            for task in tasks:
                task.cancel()  # no effect on finished ones
        if late:
            logger.warning("prompt %s: %d of %d rollouts unfinished after %.0f s, dropped", uid, len(late), len(tasks), limit)
        trajectories: list[Trajectory] = []
        for task in sorted(done, key=tasks.index):
            error = task.exception()
            if isinstance(error, InputError):
                logger.warning("prompt %s cannot be asked: %s", uid, error)
            elif error is not None:
                raise error
            else:
                trajectories.append(task.result())
        return trajectories

    async def _trajectory(
        self, sample: Sample, index: int, workflow: str, sampling: Sampling, reward: RewardConfig, step: int
    ) -> Trajectory:
        """One rollout, scored, run anew while infrastructure breaks it. After the last attempt, or out of money, it is returned unscored."""
        config = self._settings
        for attempt in range(config.rollout.infra_retries + 1):
            if attempt:
                self._counts["infra_retries"] += 1
                await asyncio.sleep(RETRY_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            trajectory = await self._episode(sample, index, workflow, sampling)
            raise_if_not_on_tape(trajectory)
            if trajectory.outcome is not Outcome.INFRA_ERROR:
                return await self._scored(trajectory, sample, reward, step)
            if trajectory.out_of_money:
                return trajectory
            await self._exit_if_dead()
            logger.info("rollout %d of %s: %s", index, sample.uid, trajectory.detail)
        return trajectory

    async def _scored(self, trajectory: Trajectory, sample: Sample, reward: RewardConfig, step: int) -> Trajectory:
        """With its reward. Where a judge is needed and none answers, within the retries of the tools, it is an infrastructure error."""
        with self._activity.during(State.TOOLS):
            ended = await scored(trajectory, sample, reward, self._settings.agent.allowed_paths, self._judge, step)
        if ended.outcome is Outcome.INFRA_ERROR:
            self._counts["unjudged"] += 1
        return ended

    async def _episode(self, sample: Sample, index: int, workflow: str, sampling: Sampling) -> Trajectory:
        assert self._tools is not None
        return await run_episode(
            sample,
            index=index,
            workflow=workflow,
            generate=TimedGenerate(self._engine.generate, self._activity),
            tools=TimedTools(self._tools, self._activity),
            codec=self._engine.codec,
            prompts=self._prompts,
            limits=self._settings.agent,
            sampling=sampling,
        )

    def sample(self, **kwargs: Any) -> Any:
        raise NotImplementedError("call sample_group: a group is the unit of work here")

    def get_spaces(self) -> dict[str, Any]:
        return {}  # an episode has no gymnasium spaces

    # ------------------------------------------------------------------------------------------------ evaluation

    async def evaluate_sample(self, sample: Sample, workflow: str) -> tuple[TrajectorySummary, Trajectory]:
        """One scored episode, greedy unless `evaluation.temperature` says otherwise. INFRA_ERROR is returned as such after the retries. Raises InputError."""
        await self.ready()
        c = self._settings
        how = sampling(c.evaluation, c.agent.max_turn_tokens, c.run.seed, sample.uid)
        trajectory = await self._trajectory(sample, 0, workflow, how, reward_in_evaluation(self._settings), AFTER_WARMUP)
        self._counts["evaluated"] += 1
        return summarise(trajectory, sample), trajectory

    # ------------------------------------------------------------------------------------------------ numbers

    async def activity(self) -> Reading:
        """Seconds in each state since the process started; answers at any time."""
        return self._activity.reading()

    async def stats(self) -> dict[str, float]:
        """Counters since the process started, and the weight version."""
        counted = {name: float(value) for name, value in self._counts.items()}
        return {
            **counted,
            "tokens": float(self._engine.tokens),
            "syncs": float(self._engine.syncs),
            "version": float(await self._engine.version()),
        }


async def _ask(store: str, namespace: str, question: str) -> Any:
    """What the weight store answers. One that died is being replaced under its name: it is looked for until STORE_SECONDS are over."""
    async with asyncio.timeout(STORE_SECONDS):
        while True:
            try:
                found: Any = find_store(store, namespace)
                return await getattr(found, question).remote()
            except (ValueError, RayActorError):
                await asyncio.sleep(WATCH_SECONDS)


async def _fetch(ticket: Ticket, seconds: float) -> Sample:
    """The ticket's sample, from the object store unless it came along. Raises TimeoutError: its node may be out of reach."""
    (item,) = ticket.sample
    if not isinstance(item, ray.ObjectRef):
        return item
    async with asyncio.timeout(seconds):
        return await item
