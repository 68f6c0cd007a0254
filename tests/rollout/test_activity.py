"""The clock against a plain model that looks at every second by itself, and the split over several runners."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mmsr_ray.rollout.activity import ActivityClock, Reading, State, TimedGenerate, TimedTools, split
from mmsr_ray.types import Generation, Picture, Sampling, ToolKind, ToolResult

OPENABLE = st.sampled_from([State.SYNC, State.GENERATE, State.TOOLS])


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class ClockMachine(RuleBasedStateMachine):
    """Whole seconds, so that sums are exact: the model looks at each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.time = Time()
        self.clock = ActivityClock(self.time)
        self.open: list[tuple[State, ExitStack]] = []
        self.model = dict.fromkeys(State, 0.0)

    @rule(state=OPENABLE)
    def begin(self, state: State) -> None:
        stack = ExitStack()
        stack.enter_context(self.clock.during(state))
        self.open.append((state, stack))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        _, stack = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        stack.close()

    @rule(seconds=st.integers(0, 5), looked_at=st.booleans())
    def wait(self, seconds: int, looked_at: bool) -> None:
        for _ in range(seconds):
            there = {state for state, _ in self.open}
            if State.SYNC in there:
                state = State.SYNC
            elif State.GENERATE in there:
                state = State.GENERATE
            elif State.TOOLS in there:
                state = State.TOOLS
            else:
                state = State.IDLE
            self.model[state] += 1.0
            self.time.now += 1.0
        if looked_at:
            assert self.clock.reading() == self.model

    @invariant()
    def seconds_sum_to_the_age(self) -> None:
        assert sum(self.clock.reading().values()) == self.time.now

    def teardown(self) -> None:
        assert self.clock.reading() == self.model


TestClock = ClockMachine.TestCase
TestClock.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_an_error_inside_closes_what_it_opened() -> None:
    time = Time()
    clock = ActivityClock(time)

    def fail() -> None:
        with clock.during(State.GENERATE):
            time.now = 2.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    time.now = 3.0
    assert clock.reading() == {State.SYNC: 0.0, State.GENERATE: 2.0, State.TOOLS: 0.0, State.IDLE: 1.0}


async def test_calls_of_the_ports_are_counted_while_they_wait() -> None:
    time = Time()
    clock, go_on = ActivityClock(time), asyncio.Event()

    class SlowTools:
        async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
            await go_on.wait()
            return ToolResult(ToolKind.IMAGE, "")

        async def text_search(self, query: str, question: str) -> ToolResult:
            await go_on.wait()
            return ToolResult(ToolKind.TEXT, query)

    async def slow(prompt_ids: list[int], pictures: list[Picture], sampling: Sampling) -> Generation:
        await asyncio.sleep(0)
        time.now += 3.0
        return Generation([1], [0.0], [0], True)

    tools, generate = TimedTools(SlowTools(), clock), TimedGenerate(slow, clock)
    searches = [asyncio.create_task(tools.image_search(b"", None, "")), asyncio.create_task(tools.text_search("x", ""))]
    await asyncio.sleep(0)
    time.now += 2.0
    assert (await generate([1], [], Sampling())).token_ids == [1]
    time.now += 5.0
    go_on.set()
    assert [result.kind for result in await asyncio.gather(*searches)] == [ToolKind.IMAGE, ToolKind.TEXT]
    time.now += 1.0
    assert clock.reading() == {State.SYNC: 0.0, State.GENERATE: 3.0, State.TOOLS: 7.0, State.IDLE: 1.0}


# ---------------------------------------------------------------------------------------------------- several runners


def reading(*, sync: float = 0.0, generate: float = 0.0, tools: float = 0.0, idle: float = 0.0) -> Reading:
    return {State.SYNC: sync, State.GENERATE: generate, State.TOOLS: tools, State.IDLE: idle}


def test_every_runner_is_an_equal_part_of_the_time() -> None:
    before = {1: reading(generate=5.0), 2: reading(tools=1.0)}
    after = {1: reading(generate=9.0), 2: reading(tools=3.0, idle=1.0, sync=1.0)}
    assert split(4.0, [1, 2], before, after) == reading(generate=2.0, tools=1.0, sync=0.5, idle=0.5)


def test_a_runner_that_does_not_answer_is_idle_and_a_new_one_was_idle_until_it_started() -> None:
    busy = {1: reading(generate=10.0)}
    assert split(4.0, [1, 2], {1: reading(generate=6.0), 2: reading(tools=1.0)}, busy) == reading(generate=2.0, idle=2.0)
    assert split(4.0, [1], {1: reading(generate=30.0)}, {1: reading(generate=1.0, sync=1.0)}) == reading(generate=1.0, sync=1.0, idle=2.0)
    assert split(4.0, [1], {}, busy) == reading(idle=4.0), "older than the interval, and nobody knows what it had done before"
    assert split(4.0, [], {}, {}) == reading(idle=4.0)


SECONDS = st.floats(0.0, 1e5)
READINGS = st.dictionaries(st.integers(1, 4), st.builds(reading, sync=SECONDS, generate=SECONDS, tools=SECONDS, idle=SECONDS))


@settings(deadline=None)
@given(SECONDS, READINGS, READINGS)
def test_whatever_the_runners_say_the_parts_sum_to_the_whole(seconds: float, before: dict[int, Reading], after: dict[int, Reading]) -> None:
    parts = split(seconds, [1, 2, 3, 4], before, after)
    assert all(value >= 0.0 for value in parts.values())
    assert sum(parts.values()) == pytest.approx(seconds, rel=1e-9, abs=1e-9)
