"""The engine's queue against closed forms."""

from __future__ import annotations

import pytest
import simpy

from mmsr_ray.planning.engine import Engine, Line
from mmsr_ray.planning.settings import EngineCosts

COSTS = EngineCosts(step_seconds=0.01, sequence_seconds=0.001)


def ends(turns: list[tuple[float, int, int]], costs: EngineCosts = COSTS, most: int = 100) -> list[float]:
    """When each of these turns, begun at once, is done."""
    env = simpy.Environment()
    engine = Engine(env, costs, most)
    at = [0.0] * len(turns)

    def watch(number: int, done: simpy.Event):
        yield done
        at[number] = env.now

    for number, (tokens, prompt, context) in enumerate(turns):
        env.process(watch(number, engine.turn(tokens, prompt, context)))
    env.run()
    return at


def test_a_step_takes_longer_the_more_are_in_it() -> None:
    assert ends([(100, 0, 0)]) == pytest.approx([100 * 0.011])
    assert ends([(100, 0, 0)] * 8) == pytest.approx([100 * 0.018] * 8)


def test_those_that_stay_go_faster_when_others_are_done() -> None:
    short, long = ends([(10, 0, 0), (30, 0, 0)])
    assert short == pytest.approx(10 * 0.012)
    assert long == pytest.approx(10 * 0.012 + 20 * 0.011)


def test_who_does_not_fit_waits() -> None:
    assert ends([(10, 0, 0)] * 3, most=2) == pytest.approx([0.12, 0.12, 0.12 + 0.11])
    room = EngineCosts(step_seconds=0.01, sequence_seconds=0.001, kv_tokens=1000)
    assert ends([(10, 0, 600), (10, 0, 300), (10, 0, 200)], room) == pytest.approx([0.12, 0.12, 0.12 + 0.11])


def test_a_prompt_stalls_everybody() -> None:
    costs = EngineCosts(step_seconds=0.01, sequence_seconds=0.0, prompt_token_seconds=0.001)
    assert ends([(10, 500, 0), (10, 0, 0)], costs) == pytest.approx([0.6, 0.6])


def test_the_runners_process_does_one_turn_at_a_time() -> None:
    costs = EngineCosts(step_seconds=0.01, sequence_seconds=0.0, turn_seconds=1.0)
    assert ends([(10, 0, 0)] * 3, costs) == pytest.approx([1.1, 2.1, 3.1])


def test_frozen_turns_go_on_and_are_computed_again() -> None:
    env = simpy.Environment()
    engine = Engine(env, EngineCosts(step_seconds=0.01, sequence_seconds=0.0, prompt_token_seconds=0.001), 8)
    done = engine.turn(10, 0, 100)

    def update():
        yield env.timeout(0.05)
        engine.freeze()
        yield env.timeout(1.0)
        engine.thaw()

    env.process(update())
    env.run(done)
    assert env.now == pytest.approx(0.1 + 1.0 + 100 * 0.001)
    assert engine.busy == pytest.approx(0.1 + 0.1)


def test_draining_lets_those_inside_finish_and_nobody_in() -> None:
    env = simpy.Environment()
    engine = Engine(env, EngineCosts(step_seconds=0.01, sequence_seconds=0.0), 8)
    first = engine.turn(10, 0, 0)
    drained = engine.drain()
    second = engine.turn(10, 0, 0)
    env.run(drained)
    assert env.now == pytest.approx(0.1)
    assert first.triggered
    env.run(env.timeout(1.0))
    assert not second.triggered
    engine.freeze()
    engine.thaw()
    env.run(second)
    assert env.now == pytest.approx(1.2)


def test_a_line_adds_up_its_work() -> None:
    env = simpy.Environment()
    line = Line(env)
    assert [line.wait(2.0), line.wait(1.0)] == [2.0, 3.0]
    env.run(10.0)
    assert line.wait(1.0) == 1.0
    assert line.busy == 4.0
