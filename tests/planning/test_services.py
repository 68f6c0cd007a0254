"""Limits, slots and the two searches, without a pipeline around them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
import simpy

from mmsr_ray.config import Config, load
from mmsr_ray.planning.services import Process, Rate, ToolPlane
from mmsr_ray.tools.limits import TokenBucket

INSTANT = [f"plan.{name}.{what}=0" for name in ("image_host", "thumbnails", "reader", "summariser") for what in ("median_seconds", "tail")]
ACTOR = ["plan.tool_actor.call_seconds=0", "plan.tool_actor.request_seconds=0"]


def config(*overrides: str) -> Config:
    searches = [f"plan.{name}.{what}" for name in ("text_search", "image_search") for what in ("median_seconds=1", "tail=0")]
    unlimited = [f"tools.{name}.rate_per_second=0" for name in ("text_search", "image_search", "image_host", "reader", "summariser")]
    paths = ["model.path=m", "data.train=t", "data.test=t", "tools.actors=1"]
    return load(None, [*paths, *INSTANT, *ACTOR, *searches, *unlimited, *overrides])


def play(c: Config, count: int, search: Callable[[ToolPlane, int], Process]) -> tuple[ToolPlane, list[bool], float]:
    """So many searches begun at once: the plane after them, how each ended, and the seconds of all."""
    env = simpy.Environment()
    tools = ToolPlane(env, c)
    searches = [env.process(search(tools, number)) for number in range(count)]
    env.run(env.all_of(searches))
    return tools, [bool(s.value) for s in searches], env.now


def texts(tools: ToolPlane, number: int) -> Process:
    return tools.text(Random(number), set(), 0)


@pytest.mark.parametrize(("rate", "burst"), [(50.0, 20), (3.0, 1), (7.5, 4)])
def test_tokens_come_when_the_jobs_own_bucket_gives_them(rate: float, burst: int) -> None:
    random, now, bucket_now = Random(0), 0.0, 0.0
    bucket = TokenBucket(rate, burst, clock=lambda: bucket_now)
    ours = Rate(rate, burst)
    for _ in range(300):
        now += random.expovariate(1.2 * rate)
        wait = ours.take(now, deadline=1e9)
        bucket_now = max(now, bucket_now)  # the one before is served first
        while (lease := bucket.lease(1)).tokens == 0:
            bucket_now += lease.wait
        assert wait == pytest.approx(bucket_now - now, abs=1e-5)


def test_who_cannot_be_served_in_time_takes_no_token() -> None:
    rate = Rate(1.0, 1)
    assert [rate.take(0.0, 1.5) for _ in range(4)] == [0.0, 1.0, None, None]
    assert rate.take(2.0, 3.0) == 0.0


def test_a_text_search_is_a_chain() -> None:
    _, ended, seconds = play(config("plan.reader.median_seconds=2", "plan.summariser.median_seconds=3"), 10, texts)
    assert all(ended)
    assert seconds == pytest.approx(6.0)


def test_a_rate_limit_and_a_deadline() -> None:
    slow = config("tools.text_search.rate_per_second=2", "tools.text_search.burst=1", "tools.deadline_seconds=5", "tools.attempts=1")
    tools, ended, _ = play(slow, 40, texts)
    served = sum(ended)
    assert 8 <= served <= 11  # a request is let through every half second, and takes one
    assert tools.services["text_search"].counts.too_late == 40 - tools.services["text_search"].counts.requests


def test_concurrency_is_shared_by_the_actors() -> None:
    _, ended, seconds = play(config("tools.text_search.concurrency=4"), 12, texts)
    assert all(ended)
    assert seconds == pytest.approx(3.0)


def test_a_deadline_passes_in_the_queue_for_a_slot() -> None:
    _, ended, seconds = play(config("tools.text_search.concurrency=4", "tools.deadline_seconds=1.5"), 12, texts)
    assert sum(ended) == 4
    assert seconds == pytest.approx(2.0)  # the second four were let in and came back too late


def test_a_group_pays_one_image_search() -> None:
    looked_up: dict[str, simpy.Event] = {}
    tools, ended, seconds = play(config("tools.image_host.kind=s3"), 8, lambda tools, number: tools.image(Random(number), looked_up))
    assert all(ended)
    assert tools.services["image_search"].counts.requests == tools.services["image_host"].counts.requests == 1
    assert tools.services["thumbnails"].counts.requests == 5
    assert seconds == pytest.approx(1.0)


def test_what_fails_is_tried_again_and_answers_alone_are_paid() -> None:
    c = config("plan.text_search.failure_rate=0.5", "tools.attempts=8", "tools.text_search.price.per_call=0.01")
    tools, ended, _ = play(c, 200, texts)
    counts = tools.services["text_search"].counts
    assert sum(ended) >= 195
    assert 300 < counts.requests < 500
    assert counts.usd == pytest.approx(0.01 * sum(ended))


def test_slower_than_the_timeout_is_a_failure() -> None:
    tools, ended, seconds = play(config("tools.text_search.timeout_seconds=0.5", "tools.attempts=2"), 1, texts)
    assert ended == [False]
    assert tools.services["text_search"].counts.failures == 2
    assert 1.1 <= seconds <= 1.4


def test_tool_actors_do_one_thing_at_a_time() -> None:
    one = config("plan.tool_actor.request_seconds=0.1", "agent.topk=1")
    assert play(one, 20, texts)[2] >= 20 * 3 * 0.1 - 1e-6
    assert play(config("plan.tool_actor.request_seconds=0.1", "agent.topk=1", "tools.actors=4"), 20, texts)[2] < 15 * 3 * 0.1


def test_what_a_cache_knows_is_not_asked() -> None:
    known = config(*(f"plan.{name}.known=1" for name in ("text_search", "reader", "summariser")))
    tools, ended, seconds = play(known, 5, texts)
    assert all(ended)
    assert seconds == 0.0
    assert sum(service.counts.requests for service in tools.services.values()) == 0
