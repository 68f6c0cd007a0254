"""The rollout actors as one group: RLlib's EnvRunnerGroup, whose FaultTolerantActorManager holds the actors.

Invariants
- A runner counts as healthy only while it holds the published weight version (members.Members says who does).
- Nothing here waits for a runner that is not up: it is asked now and then whether it lives, and then to load the newest
  weights, by calls that stay open. `sync` waits for the runners of the placement group alone.
- A runner that raises an error on its way up, or takes too long, is killed; Ray starts it anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from mmsr_ray.algorithms.members import Members, Stage
from mmsr_ray.weights.collective import Invitation

logger = logging.getLogger(__name__)

ASK_EVERY_SECONDS = 1.0  # an actor that is being restarted refuses calls at once
ELASTIC_GRACE_SECONDS = 1.0  # how long a weight sync waits for elastic runners once the others are done
SETTLE_SECONDS = 0.1  # between looks at runners that are waited for
STOP_SECONDS = 10.0
UNSYNCED = -1  # before the first sync
NOBODY: Mapping[int, Invitation] = {}


class RunnersLost(RuntimeError):
    """No runner came up, or came back, in time."""


class _Asked(StrEnum):
    """What a runner that is not up is asked, in this order."""

    ALIVE = "alive"  # does its process answer at all
    STARTED = "started"  # its engine, with the weights that were the newest then
    SYNCED = "synced"  # with a version


@dataclass(slots=True)
class _Call:
    asked: _Asked
    ref: ObjectRef
    version: int = UNSYNCED


class RunnerGroup(EnvRunnerGroup):
    """N rollout actors without a local one. Construction returns at once; `wait_until_up` waits.

    `grow` asks for elastic runners beyond them, outside the trial's placement group.
    """

    def __init__(self, *, config: AlgorithmConfig, max_concurrency: int, start_seconds: float, **kwargs: Any) -> None:
        self._max_concurrency = max_concurrency
        self._members = Members(start_seconds)
        self._version = UNSYNCED
        self._open: dict[int, _Call] = {}  # of runners that are not up
        self._not_before: dict[int, float] = {}  # when such a runner may be asked again
        self._most_elastic = 0
        self.before_pull: Callable[[], object] = _nothing  # called before a runner is to pull the newest version from the store
        super().__init__(config=config, local_env_runner=False, **kwargs)
        self._last_made = max(self.ids(), default=0)
        self._members.ask(self.ids(), elastic=False, now=time.monotonic())

    def _make_worker(self, *, worker_index: int, **kwargs: Any) -> Any:
        # RLlib has no setting for the concurrency of an asyncio actor; everything else stays as RLlib does it.
        self._remote_args["max_concurrency"] = self._max_concurrency
        return super()._make_worker(worker_index=worker_index, **kwargs)

    def grow(self, count: int) -> None:
        """Ask for `count` elastic runners. A node may have room for them now, later or never; a pending one is demand for the autoscaler."""
        self._most_elastic += count
        self._ask_for_elastic(count)

    def _ask_for_elastic(self, count: int) -> None:
        before = set(self.ids())
        actors = [self._make_elastic(self._last_made + i) for i in range(1, count + 1)]
        self._last_made += count
        self._worker_manager.add_actors(actors)
        asked = [i for i in self.ids() if i not in before]
        for runner in asked:
            self._worker_manager.set_actor_state(runner, healthy=False)
        self._members.ask(asked, elastic=True, now=time.monotonic())

    def fit(self, groups: int, busy: Collection[int], *, more: bool, idle_seconds: float) -> None:
        """Let go of elastic runners that had no work for `idle_seconds`; where there is `more` work, ask for those that were let go.

        `groups` are out or wait for a runner, `busy` have some of them. A node whose runner was let go is the autoscaler's to remove.
        Nothing is lost: a group of an elastic runner that is ready has left its node.
        """
        for runner in self._members.idle(busy, groups, time.monotonic(), idle_seconds):
            logger.info("elastic runner %d had no work for %.0f s: it is let go", runner, idle_seconds)
            self._release(runner)
        there = len(self.ids())
        elastic = there - len(self._members.required())
        if more and (wanted := min(self._most_elastic - elastic, groups - there)) > 0:
            logger.info("%d groups for %d runners: %d more are asked for", groups, there, wanted)
            self._ask_for_elastic(wanted)

    def _release(self, runner: int) -> None:
        ray.kill(self.actor(runner))
        self._leave(runner)
        del self._not_before[runner]
        self._worker_manager.remove_actor(runner)
        self._members.released(runner)

    def _make_elastic(self, index: int) -> Any:
        """As RLlib makes its workers, but in no placement group."""
        kind: Any = self.env_runner_cls
        actor = ray.remote(**self._remote_args)(kind).options(scheduling_strategy="DEFAULT")
        return actor.remote(config=self._remote_config, worker_index=index, log_dir=self._logdir, tune_trial_id=self._tune_trial_id)

    # ------------------------------------------------------------------------------------------------ members

    def ids(self) -> list[int]:
        return self._worker_manager.actor_ids()

    def healthy(self) -> list[int]:
        """Who holds the newest weights and can be given prompts."""
        return self._members.at(Stage.UP)

    def lives(self) -> dict[int, int]:
        """Of the healthy ones of the placement group: how often each has come up, so that a restarted one can be told from the one before."""
        return self._members.lives()

    def alive(self) -> list[int]:
        """Who answers: the healthy, and those that are starting or loading weights."""
        return self._members.at(Stage.UP, Stage.STARTING)

    def lasting(self) -> list[int]:
        """The runners of the placement group, whatever their health, and elastic ones that are up."""
        return [i for i in self.ids() if not self._members.elastic(i) or self._members.is_up(i)]

    def elastic(self, runner: int) -> bool:
        return self._members.elastic(runner)

    def actor(self, runner: int) -> Any:
        """The actor's handle; its methods are those of `env_runner_cls`."""
        return self._worker_manager.actors()[runner]

    def mark_lost(self, runner: int) -> None:
        self._members.lost(runner, time.monotonic())
        self._leave(runner)

    def kill(self, runner: int) -> None:
        """End a runner that does not answer; Ray starts it anew."""
        ray.kill(self.actor(runner), no_restart=False)
        self._members.asked_again(runner, time.monotonic())
        self._leave(runner)

    def _leave(self, runner: int) -> None:
        self._open.pop(runner, None)
        self._not_before[runner] = time.monotonic() + ASK_EVERY_SECONDS
        self._worker_manager.set_actor_state(runner, healthy=False)

    def _join(self, runner: int) -> None:
        away = self._members.up(runner, time.monotonic())
        self._worker_manager.set_actor_state(runner, healthy=True)
        kind = "elastic runner" if self._members.elastic(runner) else "runner"
        logger.info("%s %d is up after %.0f s", kind, runner, away)

    # ------------------------------------------------------------------------------------------------ health

    def wait_until_up(self) -> None:
        """Block until every runner of the placement group answers. Raises RunnersLost after `rollout.start_seconds`, RayError if one cannot start."""
        required = self._members.required()
        try:
            ray.get([self.actor(i).ping.remote() for i in required], timeout=self._members.start_seconds)
        except GetTimeoutError as error:
            limit = self._members.start_seconds
            raise RunnersLost(f"a rollout runner did not start within rollout.start_seconds={limit:.0f}") from error
        for runner in required:
            self._join(runner)

    def revive(self) -> list[int]:
        """Bring in runners that hold the newest weights again, or for the first time. Never waits. Returns their ids.

        One that takes longer than `rollout.start_seconds` is killed, to start over. Raises RunnersLost when none is
        healthy for that long.
        """
        if len(self.healthy()) == len(self.ids()):
            return []
        open_calls = {call.ref: runner for runner, call in self._open.items()}
        ended = ray.wait(list(open_calls), num_returns=len(open_calls), timeout=0)[0] if open_calls else []
        joined = [runner for runner in (open_calls[ref] for ref in ended) if self._take(runner)]
        now = time.monotonic()
        for runner in self._members.at(Stage.ASKED, Stage.STARTING):
            if runner not in self._open and now >= self._not_before.get(runner, 0.0):
                self._ask(runner, _Asked.ALIVE)
        self._start_over_late_ones(now)
        return joined

    def settle(self) -> None:
        """Wait for runners of the placement group that have begun to start. One may have left its device, and wait for the next version.

        Raises RunnersLost as `revive` does.
        """
        while any(not self._members.elastic(runner) for runner in self._members.at(Stage.STARTING)):
            self.revive()
            time.sleep(SETTLE_SECONDS)

    def _ask(self, runner: int, what: _Asked) -> None:
        actor = self.actor(runner)
        match what:
            case _Asked.ALIVE:
                self._open[runner] = _Call(what, actor.assert_healthy.remote())
            case _Asked.STARTED:
                self._open[runner] = _Call(what, actor.ping.remote())
            case _Asked.SYNCED:
                self._open[runner] = _Call(what, actor.sync_weights.remote(self._version), self._version)

    def _take(self, runner: int) -> bool:
        """What a runner answered. True when it is up."""
        call = self._open.pop(runner)
        try:
            ray.get(call.ref)
        except RayActorError:
            self.mark_lost(runner)
            return False
        except RayError:
            logger.exception("runner %d cannot start, or load weight version %d: starting it over", runner, call.version)
            self.kill(runner)
            return False
        if call.asked is _Asked.ALIVE:
            self._members.answered(runner, time.monotonic())
            self._ask(runner, _Asked.STARTED)
        elif call.version == self._version:
            self._join(runner)
        else:  # it has just started, or there are newer weights than those it has loaded meanwhile
            self.before_pull()
            self._ask(runner, _Asked.SYNCED)
        return self._members.is_up(runner)

    def _start_over_late_ones(self, now: float) -> None:
        limit = self._members.start_seconds
        if self._members.deserted(now):
            raise RunnersLost(f"no rollout runner has come back within rollout.start_seconds={limit:.0f}: see their logs")
        for runner in self._members.overdue(now):
            logger.error("runner %d has not come back within rollout.start_seconds=%.0f: starting it over", runner, limit)
            self.kill(runner)

    def activity(self) -> dict[int, ObjectRef]:
        """Healthy runner -> what it has done so far (`SearchEnvRunner.activity`), on its way."""
        return {runner: self.actor(runner).activity.remote() for runner in self.healthy()}

    # ------------------------------------------------------------------------------------------------ weights

    def sync(self, version: int, *, timeout: float) -> None:
        """Have runners load a published version. One that fails or is late is killed and pulls it when it restarts.

        An elastic one that is late goes on loading, and gets prompts again when it is done.
        """
        self.finish_sync(self.begin_sync(version), version, timeout=timeout)

    def begin_sync(self, version: int, invitations: Mapping[int, Invitation] = NOBODY) -> dict[int, ObjectRef]:
        """Ask runners to load a version that is open in the store, or sent to those with an invitation. Hand what comes back to `finish_sync`."""
        self._version = version
        return {runner: self.actor(runner).sync_weights.remote(version, invitations.get(runner)) for runner in self.healthy()}

    def finish_sync(self, calls: dict[int, ObjectRef], version: int, *, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        _wait([ref for runner, ref in calls.items() if not self.elastic(runner)], timeout)
        _wait([ref for runner, ref in calls.items() if self.elastic(runner)], min(ELASTIC_GRACE_SECONDS, deadline - time.monotonic()))
        for runner, ref in calls.items():
            if self.elastic(runner) and not ray.wait([ref], timeout=0)[0]:
                self._fall_behind(runner, _Call(_Asked.SYNCED, ref, version))
            else:
                self._settle(runner, ref, f"load weight version {version}", timeout)

    def load(self, version: int, handles: Mapping[int, ObjectRef], *, timeout: float) -> list[int]:
        """Have runners that are away load a version from the memory of the ranks on their cards; `sync` must follow.

        `handles` are by runner. One that fails or is late is killed. Returns those that failed.
        """
        self._version = version
        calls = {runner: self.actor(runner).load_weights.remote(version, handle) for runner, handle in handles.items()}
        _wait(list(calls.values()), timeout)
        for runner, ref in calls.items():
            self._settle(runner, ref, f"load weight version {version} from its rank's memory", timeout)
        return [runner for runner in calls if not self._members.is_up(runner)]

    def leave(self, *, timeout: float) -> None:
        """All runners give up their devices until the next sync, those that are starting included. One that does not is killed."""
        calls = {runner: self.actor(runner).leave_device.remote() for runner in self.ids()}
        _wait(list(calls.values()), timeout)
        for runner, ref in calls.items():
            self._settle(runner, ref, "leave its device", timeout)

    def _settle(self, runner: int, ref: ObjectRef, what: str, timeout: float) -> None:
        """The end of a call: a runner that died is marked lost; one that is late, or raised, is killed."""
        try:
            ray.get(ref, timeout=0)
        except RayActorError:
            logger.warning("runner %d died: it was to %s", runner, what)
            self.mark_lost(runner)
        except GetTimeoutError:
            logger.exception("runner %d did not %s within %.0f s: restarting it", runner, what, timeout)
            self.kill(runner)
        except RayError:
            logger.exception("runner %d did not %s: restarting it", runner, what)
            self.kill(runner)

    def _fall_behind(self, runner: int, call: _Call) -> None:
        logger.warning("elastic runner %d is still loading weight version %d: no prompts for it until it is done", runner, call.version)
        self._members.behind(runner, time.monotonic())
        self._worker_manager.set_actor_state(runner, healthy=False)
        self._open[runner] = call

    # ------------------------------------------------------------------------------------------------ end

    def stop(self) -> None:
        """Ask the runners to stop, then end them. Never hangs on a runner that does not answer, or was never there."""
        alive = self.alive()
        stopping = [self.actor(i).stop.remote() for i in self.ids() if i in alive or not self.elastic(i)]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=STOP_SECONDS)
        for runner in self.ids():
            ray.kill(self.actor(runner))
        self._worker_manager.clear()


def _nothing() -> None:
    pass


def _wait(refs: list[ObjectRef], seconds: float) -> None:
    """Until all are done, or the time is over."""
    if refs:
        ray.wait(refs, num_returns=len(refs), timeout=max(seconds, 0.0))
