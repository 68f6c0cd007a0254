"""Which runners can be asked now. A runner that failed is pinged until it answers again or is dead for good.

One whose process lives but cannot start what it asks is ended, so that Ray starts it anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError, RayTaskError

logger = logging.getLogger(__name__)

REST_SECONDS = 2.0  # between a failure and the next ping: Ray may be restarting the actor
DEATHS = 3  # pings without an answer that must find the actor dead, or unable to start: one may only have met the end of its last life


class RunnerPool:
    """Health of a fixed list of runners, by number. Nothing here waits."""

    def __init__(self, runners: Sequence[ActorHandle]) -> None:
        self._runners = runners
        self._down: dict[int, float] = {}  # runner -> when it may be pinged
        self._pings: dict[int, ObjectRef] = {}
        self._deaths: dict[int, int] = {}

    def __getitem__(self, number: int) -> ActorHandle:
        return self._runners[number]

    def __len__(self) -> int:
        return len(self._runners)

    @property
    def up(self) -> list[int]:
        return [number for number in range(len(self._runners)) if number not in self._down]

    @property
    def all_dead(self) -> bool:
        return all(self._deaths.get(number, 0) >= DEATHS for number in range(len(self._runners)))

    def report_down(self, number: int) -> None:
        """An actor error came out of a call to it."""
        if number not in self._down:
            self._down[number] = time.monotonic() + REST_SECONDS

    def poll(self) -> None:
        """Send pings that are due and take their answers."""
        now = time.monotonic()
        for number, due in list(self._down.items()):
            if number in self._pings:
                self._take_ping(number)
            elif now >= due and self._deaths.get(number, 0) < DEATHS:
                self._pings[number] = self._runners[number].ping.remote()

    def _take_ping(self, number: int) -> None:
        ready, _ = ray.wait([self._pings[number]], timeout=0)
        if not ready:
            return
        ping = self._pings.pop(number)
        try:
            ray.get(ping)
        except RayError as error:
            unable = isinstance(error, RayTaskError)
            if unable or isinstance(error, ActorDiedError):  # else it is being restarted
                self._deaths[number] = self._deaths.get(number, 0) + 1
            if unable:
                logger.error("rollout runner %d does not start: %s", number, error)
                ray.kill(self._runners[number], no_restart=False)
            self._down[number] = time.monotonic() + REST_SECONDS
            if self._deaths.get(number, 0) >= DEATHS:
                logger.error("rollout runner %d is dead and will not be asked again", number)
        else:
            logger.info("rollout runner %d answers again", number)
            del self._down[number]
            self._deaths.pop(number, None)
