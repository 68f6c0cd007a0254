"""How weights get to the runners, and whose turn it is on cards that runners and learner share.

Invariants of `Colocated`: engines and learner are never awake at the same time; engines leave before the learner comes
back, and the learner has left before an engine may hold device memory again, a restarted one included (the gate in the weight
store is shut before engines are asked to leave, and opened after the learner has left). Every hand-over ends, with both sides
in a known state, or raises LearnerError: a runner that fails to leave or to return is killed, and Ray restarts it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, cast

import ray
from ray.actor import ActorHandle

from mmsr_ray.algorithms.runners import RunnerGroup
from mmsr_ray.config import Config
from mmsr_ray.learner.group import LearnerGroup
from mmsr_ray.weights.store import publish


class Turns(Protocol):
    def to_learner(self) -> None:
        """The learner may compute, save, load and publish from here on. Raises LearnerError."""
        ...

    def for_new_learner(self) -> None:
        """As `to_learner`, when the ranks are dead or about to be replaced: they start awake."""
        ...

    def publish(self, version: int) -> None:
        """Publish the learner's weights; the runners that are healthy hold them and can sample. Raises LearnerError."""
        ...

    def borrowed(self, version: int) -> AbstractContextManager[None]:
        """Inside it is the learner's turn; afterwards the runners hold `version`, which is published, and can sample."""
        ...

    def record(self) -> dict[str, Any]:
        """For the step's record: what the turns since the last call cost."""
        ...


class Apart:
    """Runners and learner have cards of their own: there are no turns.

    On-policy runners are idle while the learner publishes, so they load bucket by bucket along with it (`along`); others
    sample on until the version is whole.
    """

    def __init__(self, runners: RunnerGroup, publish: Callable[[int], object], *, seconds: float, along: bool) -> None:
        """`publish(version)` blocks until all buckets are in the store. `seconds`: deadline of what the runners are asked for."""
        self._runners, self._publish = runners, publish
        self._seconds, self._along = seconds, along

    def to_learner(self) -> None:
        pass

    def for_new_learner(self) -> None:
        pass

    def publish(self, version: int) -> None:
        calls = self._runners.begin_sync(version) if self._along else {}
        try:
            self._publish(version)
        finally:  # a version that was given up fails its readers, which restart
            self._runners.finish_sync(calls, version, timeout=self._seconds)
        if not self._along:
            self._runners.sync(version, timeout=self._seconds)

    def borrowed(self, version: int) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self) -> dict[str, Any]:
        return {}


class Colocated:
    """Runner i and rank i share a card. Made while the ranks are awake and no engine has started."""

    def __init__(
        self,
        runners: RunnerGroup,
        learners: LearnerGroup,
        publish: Callable[[int], object],
        gate: Callable[[bool], object],
        *,
        seconds: float,
    ) -> None:
        """`publish(version)` blocks until all buckets are in the store; `gate(open)` lets engines start or keeps them from it."""
        self._runners, self._learners, self._publish, self._gate = runners, learners, publish, gate
        self._seconds = seconds
        self._engines_awake, self._learner_awake = False, True
        self._started = False  # the engines, for the first time
        self._costs: dict[str, float] = {}
        self._memory: dict[str, float] = {}

    def to_learner(self) -> None:
        self._engines_leave()
        if not self._learner_awake:
            with self._timed("learner_returns"):
                self._remember("between_turns", self._learners.come_back())
            self._learner_awake = True

    def for_new_learner(self) -> None:
        self._engines_leave()
        self._learner_awake = True

    def publish(self, version: int) -> None:
        self.to_learner()
        self._publish(version)
        self._to_engines(version)

    @contextmanager
    def borrowed(self, version: int) -> Iterator[None]:
        self.to_learner()
        yield
        self._to_engines(version)

    def _engines_leave(self) -> None:
        if not self._engines_awake:
            return
        with self._timed("engines_leave"):
            self._gate(False)
            self._runners.leave(timeout=self._seconds)
        self._engines_awake = False

    def _to_engines(self, version: int) -> None:
        if self._learner_awake:
            with self._timed("learner_leaves"):
                self._remember("learner_left", self._learners.leave())
            self._learner_awake = False
        self._engines_awake = True  # from here on some may be
        with self._timed("engines_return"):
            self._gate(True)
            if self._started:
                self._runners.sync(version, timeout=self._seconds)
            else:
                self._runners.wait_until_up()
                self._started = True
        self._remember("sampling", self._learners.device_memory())

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._costs[phase] = self._costs.get(phase, 0.0) + time.monotonic() - began

    def _remember(self, phase: str, memory: dict[str, float]) -> None:
        for kind, gib in memory.items():
            self._memory[f"{phase}_{kind}"] = gib

    def record(self) -> dict[str, Any]:
        """`turns`: seconds by hand-over. `device_gib`, where there is a GPU: in use on the fullest card at the end of each phase."""
        costs, memory = self._costs, self._memory
        self._costs, self._memory = {}, {}
        return {"turns": costs} | ({"device_gib": memory} if memory else {})


def turns(config: Config, runners: RunnerGroup, learners: LearnerGroup, store: ActorHandle) -> Turns:
    """What suits the settings. Runners and ranks must be as `parts.start` leaves them."""
    seconds = config.grpo.sync_seconds

    def publish_version(version: int) -> None:
        publish(store, version, learners.publish(version), seconds)

    def gate(open_: bool) -> None:
        ray.get(cast(Any, store).let_engines_in.remote(open_), timeout=seconds)

    if config.learner.colocated:
        return Colocated(runners, learners, publish_version, gate, seconds=seconds)
    return Apart(runners, publish_version, seconds=seconds, along=config.grpo.staleness == 0)
