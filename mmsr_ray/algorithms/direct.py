"""Weights straight from the learner's rank 0 to the runners of the placement group, in one group of NCCL's or gloo's (`learner.transport=collective`).

Promise: whatever breaks, the version still goes to the object store, and runners that did not get it pull it there; so this raises for the
learner alone. A group is kept from version to version for as long as nobody in it was replaced. Elastic runners are never in it: they
come and go, and every one that goes breaks the group.
"""

from __future__ import annotations

import logging
from typing import Any

from mmsr_ray.algorithms.runners import RunnerGroup
from mmsr_ray.learner.group import LearnerGroup
from mmsr_ray.weights.collective import Invitation, Meeting

logger = logging.getLogger(__name__)


class DirectSend:
    """`workers`: processes of one engine that hold weights (`rollout.tensor_parallel`)."""

    def __init__(self, runners: RunnerGroup, learners: LearnerGroup, workers: int) -> None:
        self._runners, self._learners, self._workers = runners, learners, workers
        self._met: tuple[Any, dict[int, int]] | None = None  # rank 0, and the lives of the runners, that the group is made of
        self._meeting: Meeting | None = None
        self._sent: int | None = None

    def begin_sync(self, version: int) -> dict[int, Any]:
        """Send a version that is open in the store, and have all healthy runners load it; for `RunnerGroup.finish_sync`. Raises LearnerError.

        A version that was sent before is not sent again: who has it does not listen.
        """
        members = self._runners.lives()
        if version == self._sent or not members:
            return self._runners.begin_sync(version)
        transfer = f"{version}"  # of which there is one: versions only grow
        meeting = self._meet(members)
        sending = self._learners.send(transfer)
        first = {runner: 1 + place * self._workers for place, runner in enumerate(sorted(members))}
        calls = self._runners.begin_sync(version, {runner: Invitation(meeting, rank, transfer) for runner, rank in first.items()})
        self._sent = version
        if why := sending():
            logger.warning("weight version %d goes through the object store alone: %s", version, why)
            self._met = None
        return calls

    def _meet(self, members: dict[int, int]) -> Meeting:
        """The group that there is, or a new one where somebody is new."""
        met = (self._learners.ranks[0], members)
        if self._meeting is None or met != self._met:
            self._meeting, self._met = self._learners.meet(1 + len(members) * self._workers), met
        return self._meeting
