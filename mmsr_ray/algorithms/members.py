"""Which rollout runners are wanted, pending, starting and up. A pure state machine: no Ray; the clock is passed in.

Invariants
- A runner is UP only from the moment it holds the newest weights until it is lost or falls behind; only those get prompts.
- A runner that no node has room for yet (ASKED) costs nothing: it is neither waited for nor started over, if it is elastic.
- Only the runners of the trial's own placement group are required: elastic ones come and go, and their absence is never an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

LOOK_SECONDS = 2.0  # more than lies between two looks while groups are waited for


class Stage(StrEnum):
    ASKED = "asked"  # Ray has been asked for it: pending, or being restarted. No process of it has answered yet
    STARTING = "starting"  # its process answers; it starts its engine and pulls the newest weights
    UP = "up"


@dataclass(slots=True)
class Member:
    runner: int
    elastic: bool
    stage: Stage
    since: float  # monotonic seconds at which the stage began
    left: float  # when it was last asked for or lost: how long it has been away, while it is
    idle: float = 0.0  # seconds without work for it, as far as somebody looked
    lives: int = 0  # how often it came up: another number, another process


class Members:
    """Of one run. `start_seconds` is how long a start may take (`rollout.start_seconds`)."""

    def __init__(self, start_seconds: float) -> None:
        self.start_seconds = start_seconds
        self._members: dict[int, Member] = {}
        self._none_since: float | None = None
        self._looked = 0.0

    def ask(self, runners: Iterable[int], *, elastic: bool, now: float) -> None:
        """Runners that Ray has just been asked for."""
        for runner in runners:
            self._members[runner] = Member(runner, elastic, Stage.ASKED, now, now)

    # ------------------------------------------------------------------------------------------------ who

    def required(self) -> list[int]:
        return [m.runner for m in self._members.values() if not m.elastic]

    def elastic(self, runner: int) -> bool:
        return self._members[runner].elastic

    def at(self, *stages: Stage) -> list[int]:
        return [m.runner for m in self._members.values() if m.stage in stages]

    def is_up(self, runner: int) -> bool:
        return self._members[runner].stage is Stage.UP

    def lives(self) -> dict[int, int]:
        """Of the required ones that are up: how often each has come up."""
        return {m.runner: m.lives for m in self._members.values() if m.stage is Stage.UP and not m.elastic}

    # ------------------------------------------------------------------------------------------------ transitions

    def answered(self, runner: int, now: float) -> None:
        """Its process lives. What has come further stays there."""
        member = self._members[runner]
        if member.stage is Stage.ASKED:
            member.stage, member.since = Stage.STARTING, now

    def up(self, runner: int, now: float) -> float:
        """It holds the newest weights. Returns the seconds that it was away."""
        member = self._members[runner]
        member.stage, member.since, member.idle = Stage.UP, now, 0.0
        member.lives += 1
        self._none_since = None
        return now - member.left

    def behind(self, runner: int, now: float) -> None:
        """It lives, but does not hold the newest weights yet: no prompts until it does."""
        member = self._members[runner]
        if member.stage is Stage.UP:
            member.stage, member.since, member.left = Stage.STARTING, now, now

    def lost(self, runner: int, now: float) -> None:
        """Its process is gone; Ray is asked for another."""
        member = self._members[runner]
        if member.stage is Stage.UP:
            member.left = now
        if member.stage is not Stage.ASKED:
            member.stage, member.since = Stage.ASKED, now

    def asked_again(self, runner: int, now: float) -> None:
        """It was ended because it was overdue: its time starts anew."""
        member = self._members[runner]
        member.stage, member.since = Stage.ASKED, now

    def released(self, runner: int) -> None:
        """Nobody asks for it any more."""
        del self._members[runner]

    # ------------------------------------------------------------------------------------------------ time

    def idle(self, busy: Collection[int], groups: int, now: float, limit: float) -> list[int]:
        """Elastic ones for which there was no work for longer than `limit`.

        To be called again and again; time in which nobody looks, while the learner learns, counts for LOOK_SECONDS. `busy` have
        groups in flight. Those that are not up yet are needed while more than one group at a time falls to each that is.
        """
        passed, self._looked = min(now - self._looked, LOOK_SECONDS), now
        crowded = groups > len(self.at(Stage.UP))
        for member in self._members.values():
            needed = member.runner in busy or (crowded and member.stage is not Stage.UP)
            member.idle = 0.0 if needed else member.idle + passed
        return [m.runner for m in self._members.values() if m.elastic and m.idle > limit]

    def overdue(self, now: float) -> list[int]:
        """Those to start over: a start that takes too long, and a required runner that does not even begin to."""
        late = [m for m in self._members.values() if m.stage is not Stage.UP and now - m.since > self.start_seconds]
        return [m.runner for m in late if m.stage is Stage.STARTING or not m.elastic]

    def deserted(self, now: float) -> bool:
        """True when none has been up for longer than a start may take."""
        if self.at(Stage.UP):
            self._none_since = None
            return False
        self._none_since = now if self._none_since is None else self._none_since
        return now - self._none_since > self.start_seconds
