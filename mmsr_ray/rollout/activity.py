"""What a runner does with its wall time. Pure: the clock is handed in.

Invariant: at any moment a runner is in exactly one state, so the seconds of a `Reading` sum to its age. Where several
things go on at once the first of sync, generate, tools counts: tools are what nothing else covers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum

from mmsr_ray.agent.ports import Generate, Tools
from mmsr_ray.types import Generation, Picture, Sampling, ToolResult


class State(StrEnum):
    """In order of precedence."""

    SYNC = "sync"  # a weight update, from the moment that no new turn may begin
    GENERATE = "generate"  # at least one turn is with the engine
    TOOLS = "tools"  # none is, and at least one rollout waits for a tool or for the judge
    IDLE = "idle"


Reading = dict[State, float]  # seconds in each state since the runner's process started


class ActivityClock:
    """Counts what is open on one runner. For one thread or one event loop."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._since = now()
        self._open: Counter[State] = Counter()
        self._seconds: Reading = dict.fromkeys(State, 0.0)

    @contextmanager
    def during(self, state: State) -> Iterator[None]:
        """Inside, one more of `state` is open; it may nest and overlap with any other."""
        self._settle()
        self._open[state] += 1
        try:
            yield
        finally:
            self._settle()
            self._open[state] -= 1

    def reading(self) -> Reading:
        self._settle()
        return dict(self._seconds)

    def _settle(self) -> None:
        """Book the time since the last change."""
        now = self._now()
        state = next((state for state in State if self._open[state]), State.IDLE)
        self._seconds[state] += now - self._since
        self._since = now


class TimedTools:
    """The same tools, their calls counted as open."""

    def __init__(self, tools: Tools, clock: ActivityClock) -> None:
        self._tools, self._clock = tools, clock

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        with self._clock.during(State.TOOLS):
            return await self._tools.image_search(picture_bytes, url, question)

    async def text_search(self, query: str, question: str) -> ToolResult:
        with self._clock.during(State.TOOLS):
            return await self._tools.text_search(query, question)


class TimedGenerate:
    """The same generation, its calls counted as open."""

    def __init__(self, generate: Generate, clock: ActivityClock) -> None:
        self._generate, self._clock = generate, clock

    async def __call__(self, prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        with self._clock.during(State.GENERATE):
            return await self._generate(prompt_ids, pictures, sampling)


# ---------------------------------------------------------------------------------------------------- several runners


def split(seconds: float, runners: Sequence[int], before: Mapping[int, Reading], after: Mapping[int, Reading]) -> Reading:
    """`seconds` of wall time by what the runners did meanwhile, each of them an equal part of it; sums to `seconds`.

    `before` and `after` are readings at the two ends, by runner. A runner without a later one is idle as far as anybody
    knows; one whose process is younger than the interval was idle until it started.
    """
    parts: Reading = dict.fromkeys(State, 0.0)
    for runner in runners:
        spent = _spent(before.get(runner), after.get(runner), seconds)
        whole = max(sum(spent.values()), seconds)  # the two readings are some milliseconds off the interval's ends
        for state, value in spent.items():
            if whole > 0:
                parts[state] += value * seconds / whole / len(runners)
    busy = sum(value for state, value in parts.items() if state is not State.IDLE)
    parts[State.IDLE] = max(0.0, seconds - busy)
    return parts


def _spent(before: Reading | None, after: Reading | None, seconds: float) -> Reading:
    """What one runner did between two readings; nothing where they do not tell."""
    if after is None:
        return {}
    if before is not None and all(after[state] >= before[state] for state in State):
        return {state: after[state] - before[state] for state in State}
    return after if sum(after.values()) <= seconds else {}  # a new process: all that it has done lies in the interval
