"""The rollout actors as one group: RLlib's EnvRunnerGroup, with health kept by its FaultTolerantActorManager.

Invariant: a runner counts as healthy only when it answered a ping and holds the published weight version. A runner that
cannot be reached, or that misses a deadline, is killed; Ray restarts it, and `revive` brings it back in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup

logger = logging.getLogger(__name__)

PROBE_EVERY_SECONDS = 1.0
PROBE_TIMEOUT_SECONDS = 0.5
STOP_SECONDS = 10.0
STARTUP_POLL_SECONDS = 0.5


class RunnersLost(RuntimeError):
    """No runner came up, or came back, in time."""


class RunnerGroup(EnvRunnerGroup):
    """N rollout actors without a local one. Construction returns at once; `wait_until_up` waits."""

    def __init__(self, *, config: AlgorithmConfig, max_concurrency: int, start_seconds: float, **kwargs: Any) -> None:
        self._max_concurrency = max_concurrency
        self._start_seconds = start_seconds
        self._probed_at = 0.0
        self._lost_at: dict[int, float] = {}  # runner -> when it was last lost or killed
        self._none_since: float | None = None  # since when no runner is healthy
        super().__init__(config=config, local_env_runner=False, **kwargs)

    def _make_worker(self, *, worker_index: int, **kwargs: Any) -> Any:
        # RLlib has no setting for the concurrency of an asyncio actor; everything else stays as RLlib does it.
        self._remote_args["max_concurrency"] = self._max_concurrency
        return super()._make_worker(worker_index=worker_index, **kwargs)

    # ------------------------------------------------------------------------------------------------ members

    def ids(self) -> list[int]:
        return self._worker_manager.actor_ids()

    def healthy(self) -> list[int]:
        return self._worker_manager.healthy_actor_ids()

    def actor(self, runner: int) -> Any:
        """The actor's handle; its methods are those of `env_runner_cls`."""
        return self._worker_manager.actors()[runner]

    def mark_lost(self, runner: int) -> None:
        self._worker_manager.set_actor_state(runner, healthy=False)
        self._lost_at.setdefault(runner, time.monotonic())

    def kill(self, runner: int) -> None:
        """End a runner that does not answer; Ray starts it anew."""
        self._lost_at[runner] = time.monotonic()
        ray.kill(self.actor(runner), no_restart=False)
        self.mark_lost(runner)

    # ------------------------------------------------------------------------------------------------ health

    def wait_until_up(self) -> None:
        """Block until every runner answers. Raises RunnersLost after `rollout.start_seconds`, RayError if one cannot start."""
        pings = [self.actor(i).ping.remote() for i in self.ids()]
        try:
            ray.get(pings, timeout=self._start_seconds)
        except GetTimeoutError as error:
            raise RunnersLost(f"a rollout runner did not start within rollout.start_seconds={self._start_seconds:.0f}") from error

    def revive(self, prepare: Callable[[list[int]], None]) -> list[int]:
        """Bring answering runners back in; `prepare(ids)` syncs their weights before they take a prompt.

        Cheap when all are healthy; otherwise probes once a second for half a second at most. Returns the ids restored.
        A runner that stays away for `rollout.start_seconds` is killed, to start over. Raises RunnersLost when
        none is healthy for that long.
        """
        now = time.monotonic()
        if len(self.healthy()) == len(self.ids()) or now - self._probed_at < PROBE_EVERY_SECONDS:
            return []
        restored = self.probe_unhealthy_env_runners(timeout_seconds=PROBE_TIMEOUT_SECONDS)
        self._probed_at = time.monotonic()
        if restored:
            prepare(restored)
        back = [i for i in restored if i in self.healthy()]
        for runner in back:
            logger.info("runner %d is back after %.0f s", runner, now - self._lost_at.pop(runner, now))
        self._start_over_late_ones()
        return back

    def _start_over_late_ones(self) -> None:
        now = time.monotonic()
        self._none_since = None if self.healthy() else self._none_since or now
        if self._none_since is not None and now - self._none_since > self._start_seconds:
            raise RunnersLost(f"no rollout runner has come back within rollout.start_seconds={self._start_seconds:.0f}: see their logs")
        for runner in self.ids():
            if runner not in self.healthy() and now - self._lost_at.setdefault(runner, now) > self._start_seconds:
                logger.error("runner %d has not come back within rollout.start_seconds=%.0f: starting it over", runner, self._start_seconds)
                self.kill(runner)

    # ------------------------------------------------------------------------------------------------ weights

    def sync(self, version: int, *, only: list[int] | None = None, timeout: float) -> None:
        """Have runners load a published version. One that fails or is late is killed and pulls it when it restarts."""
        self.finish_sync(self.begin_sync(version, only=only), version, timeout=timeout)

    def begin_sync(self, version: int, *, only: list[int] | None = None) -> dict[int, ObjectRef]:
        """Ask runners to load a version that is being published; hand what comes back to `finish_sync`."""
        return {i: self.actor(i).sync_weights.remote(version) for i in (self.healthy() if only is None else only)}

    def finish_sync(self, calls: dict[int, ObjectRef], version: int, *, timeout: float) -> None:
        self._settle(calls, f"load weight version {version}", timeout)

    def leave(self, *, timeout: float) -> None:
        """All runners give up their devices until the next sync, those that are starting included. One that does not is killed."""
        self._settle({i: self.actor(i).leave_device.remote() for i in self.ids()}, "leave its device", timeout)

    def _settle(self, calls: dict[int, ObjectRef], what: str, timeout: float) -> None:
        """Wait for calls by runner. One that died is marked lost; one that is late, or raised, is killed."""
        deadline = time.monotonic() + timeout
        for runner, call in calls.items():
            try:
                ray.get(call, timeout=max(deadline - time.monotonic(), 0.0))
            except RayActorError:
                logger.warning("runner %d died: it was to %s", runner, what)
                self.mark_lost(runner)
            except RayError:  # late, or an error of its own
                logger.exception("runner %d did not %s within %.0f s: restarting it", runner, what, timeout)
                self.kill(runner)

    # ------------------------------------------------------------------------------------------------ end

    def stop(self) -> None:
        """Ask the runners to stop, then end them. Never hangs on a runner that does not answer."""
        actors = [self.actor(i) for i in self.ids()]
        if actors:
            ray.wait([a.stop.remote() for a in actors], num_returns=len(actors), timeout=STOP_SECONDS)
        for actor in actors:
            ray.kill(actor)
        self._worker_manager.clear()
