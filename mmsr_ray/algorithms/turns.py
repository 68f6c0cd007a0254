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
from functools import partial
from typing import Any, Protocol

from mmsr_ray.algorithms.direct import DirectSend
from mmsr_ray.algorithms.parts import Parts
from mmsr_ray.algorithms.runners import RunnerGroup
from mmsr_ray.config import Config
from mmsr_ray.learner.group import LearnerError, LearnerGroup

Begin = Callable[[int], dict[int, Any]]
Publish = Callable[[int, Callable[[], object]], object]  # blocks until a version is in the store; calls when readers may ask for it


class Turns(Protocol):
    def to_learner(self) -> None:
        """The learner may compute, save, load and publish from here on. Raises LearnerError."""
        ...

    def for_new_learner(self) -> None:
        """As `to_learner`, when the ranks are dead or about to be replaced: they start awake."""
        ...

    def to_engines(self, version: int) -> None:
        """Runners hold `version`, which is published, and can sample. Nothing happens where that is so. Raises LearnerError."""
        ...

    def publish(self, version: int) -> None:
        """Publish the learner's weights; the runners that are healthy hold them and can sample. Raises LearnerError."""
        ...

    def borrowed(self, version: int) -> AbstractContextManager[None]:
        """Inside it is the learner's turn; afterwards the runners hold `version`, which is published, and can sample."""
        ...

    def fill_store(self) -> None:
        """From here on, until the next version, a runner that starts over finds the runners' version in the store. Raises LearnerError."""
        ...

    def record(self) -> dict[str, Any]:
        """For the step's record: what the turns since the last call cost."""
        ...


class Apart:
    """Runners and learner have cards of their own: there are no turns.

    `begin` asks the runners to load a version as soon as it is open in the store; what it returns is for `finish_sync`. Without it they sample
    on until the version is whole.
    """

    def __init__(self, runners: RunnerGroup, publish: Publish, *, seconds: float, begin: Begin | None) -> None:
        """`seconds`: deadline of what the runners are asked for."""
        self._runners, self._publish = runners, publish
        self._seconds, self._begin = seconds, begin

    def to_learner(self) -> None:
        pass

    def for_new_learner(self) -> None:
        pass

    def publish(self, version: int) -> None:
        calls: dict[int, Any] = {}

        def opened() -> None:
            if self._begin is not None:
                calls.update(self._begin(version))

        try:
            self._publish(version, opened)
        finally:  # a version that was given up fails its readers, which restart
            if calls:
                self._runners.finish_sync(calls, version, timeout=self._seconds)
        if not calls:  # nobody was asked along the way: so it is meant, or the store had died and a new one was filled at once
            self._runners.sync(version, timeout=self._seconds)

    def to_engines(self, version: int) -> None:
        pass

    def borrowed(self, version: int) -> AbstractContextManager[None]:
        return nullcontext()

    def fill_store(self) -> None:
        pass

    def record(self) -> dict[str, Any]:
        return {}


class Colocated:
    """Runner i and rank i share a card. Made while the ranks are awake and no engine has started."""

    def __init__(
        self,
        runners: RunnerGroup,
        learners: LearnerGroup,
        publish: Publish,
        gate: Callable[[bool], object],
        *,
        seconds: float,
    ) -> None:
        """`gate(open)` lets engines start or keeps them from it."""
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
        self._publish(version, lambda: None)
        self._give_to_engines(version)

    @contextmanager
    def borrowed(self, version: int) -> Iterator[None]:
        self.to_learner()
        try:
            yield
        finally:  # what a disk does not take is no reason to keep the card
            self._give_to_engines(version)

    def to_engines(self, version: int) -> None:
        if not self._engines_awake:
            self._give_to_engines(version)

    def _engines_leave(self) -> None:
        if not self._engines_awake:
            return
        with self._timed("engines_leave"):
            self._gate(False)
            self._runners.leave(timeout=self._seconds)
        self._engines_awake = False

    def _give_to_engines(self, version: int) -> None:
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

    def fill_store(self) -> None:
        pass

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


class ColocatedSharing(Colocated):
    """As Colocated, but engines load from the ranks' own memory on their cards, before the ranks leave (`learner.transport=ipc`).

    The engines' caches, and runners that start, come only once the ranks have left. The store gets a version when a runner needs it there: all
    of them at first, later one that starts over, or may without the driver's looking (`fill_store`). Ranks that are away can publish: their weights lie in host memory.
    """

    def __init__(self, *args: Any, newest_in_store: Callable[[], int], **kwargs: Any) -> None:
        """`newest_in_store` says which version runners would pull, and replaces a store that died."""
        super().__init__(*args, **kwargs)
        self._newest_in_store = newest_in_store
        self._version: int | None = None
        self._stranded = ""  # why the learner must be restarted
        self._runners.before_pull = self.fill_store

    def publish(self, version: int) -> None:
        self.to_learner()
        self._give_to_engines(version)

    def _give_to_engines(self, version: int) -> None:
        self._version = version
        if self._started and self._learner_awake:
            with self._timed("engines_load"):
                self._load(version)
            self._newest_in_store()  # there must be a store, for the gate is there
        else:
            self.fill_store()
        super()._give_to_engines(version)

    def _load(self, version: int) -> None:
        """Raises LearnerError also where an engine did not open what it was offered: a card keeps such memory until its rank ends, so the
        learner must be restarted before anything else."""
        runners = self._runners.healthy()
        handles = dict(zip(runners, self._learners.offer([runner - 1 for runner in runners]), strict=True))
        self._engines_awake = True  # from here on some have their weights there
        if failed := self._runners.load(version, handles, timeout=self._seconds):
            self._stranded = f"runners {failed} did not take the weights of the ranks on their cards"
            self._raise_if_stranded()

    def _raise_if_stranded(self) -> None:
        if self._stranded:
            raise LearnerError(self._stranded)

    def to_learner(self) -> None:
        self._raise_if_stranded()
        super().to_learner()

    def for_new_learner(self) -> None:
        self._stranded = ""
        super().for_new_learner()

    def to_engines(self, version: int) -> None:
        self._raise_if_stranded()
        super().to_engines(version)

    def fill_store(self) -> None:
        if self._version is not None and self._newest_in_store() != self._version:
            self._publish(self._version, lambda: None)


def turns(config: Config, parts: Parts) -> Turns:
    """What suits the settings. `parts` are as `parts.start` left them."""
    seconds = config.grpo.sync_seconds
    publish = partial(parts.publish, timeout=seconds)
    if config.learner.colocated:
        gate = partial(parts.let_engines_in, timeout=seconds)
        if config.learner.transport == "ipc":
            newest = partial(parts.newest_in_store, timeout=seconds)
            return ColocatedSharing(parts.runners, parts.learners, publish, gate, seconds=seconds, newest_in_store=newest)
        return Colocated(parts.runners, parts.learners, publish, gate, seconds=seconds)
    begin: Begin | None = None
    if config.learner.transport == "collective":
        begin = DirectSend(parts.runners, parts.learners, config.rollout.tensor_parallel).begin_sync
    elif config.grpo.staleness == 0:  # they are idle while the learner publishes: they load bucket by bucket along with it
        begin = parts.runners.begin_sync
    return Apart(parts.runners, publish, seconds=seconds, begin=begin)
