"""The path from a call to a provider, under a clock that jumps: hours of trouble in milliseconds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from mmsr_ray.config import PriceConfig, ProviderConfig
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.guard import Guard, Trace
from mmsr_ray.tools.http import retry_after as seconds_of
from mmsr_ray.tools.limits import Breaker
from mmsr_ray.tools.measures import Measures
from mmsr_ray.tools.purse import Grant
from mmsr_ray.tools.quota import Buckets, LocalQuota, Quota, Unlimited, Wallet
from mmsr_ray.tools.till import Payer, Till
from mmsr_ray.types import ToolFailure
from tests.tools.virtual import virtually

Answer = Callable[[int], Awaitable[str]]


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Service:
    """Answers request number n (from 1) with `answer(n)`; remembers when each one came and how many were in it at once."""

    answer: Answer
    times: list[float] = field(default_factory=list)
    busy: int = 0
    peak: int = 0

    async def __call__(self) -> str:
        self.times.append(now())
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        try:
            return await self.answer(len(self.times))
        finally:
            self.busy -= 1


def quota(config: ProviderConfig) -> LocalQuota:
    return LocalQuota(Buckets({"s": config}, now))


class NoBank:
    """A service without a price never asks for money."""

    async def lease(self, least: int, want: int, spent: int, back: int) -> Grant:
        raise AssertionError("asked for money")

    async def settle(self, spent: int, back: int) -> None:
        raise AssertionError("had money")


def free() -> Payer:
    return Payer(Till(NoBank()), "s", PriceConfig(), 1)


def guard(config: ProviderConfig, shared: Quota | None = None, *, failures: int = 16, cooldown: float = 5.0, attempts: int = 4) -> Guard:
    return Guard(
        "s",
        config,
        Wallet(shared or quota(config), "s", config.rate_per_second),
        Breaker(failures, cooldown, now),
        free(),
        Measures(),
        attempts=attempts,
        concurrency=config.concurrency,
    )


def config(rate: float = 0.0, burst: int = 20, concurrency: int = 64, timeout: float = 10.0) -> ProviderConfig:
    return ProviderConfig(kind="x", rate_per_second=rate, burst=burst, concurrency=concurrency, timeout_seconds=timeout)


async def good(n: int) -> str:
    await asyncio.sleep(1.0)
    return "v"


async def down(n: int) -> str:
    raise ProviderError(ToolFailure.UNAVAILABLE, "HTTP 500", status=500)


async def hang(n: int) -> str:
    await asyncio.sleep(1e9)
    return "never"


def failing(failure: ToolFailure, first: int, retry_after: float | None = None) -> Answer:
    """Fails `first` times, then is well."""

    async def answer(n: int) -> str:
        if n <= first:
            raise ProviderError(failure, "no", retry_after=retry_after)
        return "v"

    return answer


async def outcome(one: Guard, service: Service, seconds: float = 60.0) -> str:
    try:
        return await one.call(Trace(now() + seconds), service)
    except ProviderError as error:
        return str(error.failure)


def test_rate_limit_is_one_for_two_guards_of_one_quota() -> None:
    async def main() -> None:
        settings = config(rate=50.0, burst=10, concurrency=512)
        shared, service = quota(settings), Service(good)
        guards = [guard(settings, shared) for _ in range(2)]
        assert set(await asyncio.gather(*(outcome(guards[i % 2], service) for i in range(512)))) == {"v"}
        times = [t - service.times[0] for t in service.times]
        for i, begun in enumerate(times):
            assert i + 1 <= 10 + 50 * begun + 2 * 5 + 1e-6  # burst + rate * t, and one lease of each guard
        assert times[-1] < 1.2 * (512 - 10) / 50  # and the limit is used

    virtually(main())


def test_everybody_waits_out_a_retry_after_and_503_has_it_too() -> None:
    async def main(failure: ToolFailure) -> None:
        settings = config()
        shared, service = quota(settings), Service(failing(failure, 1, retry_after=30.0))
        first, second = guard(settings, shared), guard(settings, shared)
        calls = [asyncio.create_task(outcome(first, service))]
        await asyncio.sleep(0.5)
        calls += [asyncio.create_task(outcome(second, service)) for _ in range(5)]
        assert await asyncio.gather(*calls) == ["v"] * 6
        assert [t - service.times[0] for t in service.times[1:]] == [pytest.approx(30.0)] * 6

    for failure in (ToolFailure.RATE_LIMITED, ToolFailure.UNAVAILABLE):
        virtually(main(failure))


def test_retry_after_as_a_date() -> None:
    async def main() -> None:
        seconds = seconds_of("Thu, 01 Jan 1970 00:01:40 GMT", 60.0)
        assert seconds == 40.0
        service = Service(failing(ToolFailure.RATE_LIMITED, 1, retry_after=seconds))
        assert await outcome(guard(config()), service) == "v"
        assert service.times[1] - service.times[0] == pytest.approx(40.0)

    virtually(main())


def test_retry_after_beyond_the_deadline_fails_at_once() -> None:
    async def main() -> None:
        one, service = guard(config()), Service(failing(ToolFailure.RATE_LIMITED, 99, retry_after=600.0))
        began = now()
        assert [await outcome(one, service) for _ in range(3)] == ["rate_limited"] * 3
        assert (now() - began, len(service.times)) == (0.0, 1)
        await asyncio.sleep(601)
        service.answer = good
        assert await outcome(one, service) == "v"

    virtually(main())


def test_silence_of_one_host_is_not_that_of_all() -> None:
    async def main() -> None:
        one = Guard(
            "s",
            config(),
            Unlimited(),
            Breaker(0, 5.0, now),
            free(),
            Measures(),
            attempts=1,
            concurrency=4,
        )
        assert await outcome(one, Service(failing(ToolFailure.RATE_LIMITED, 9, retry_after=3600.0))) == "rate_limited"
        began = now()
        assert await outcome(one, Service(good)) == "v"
        assert now() - began == pytest.approx(1.0)

    virtually(main())


@pytest.mark.parametrize("failure", list(ToolFailure))
def test_retries_with_jitter_on_what_may_pass_only(failure: ToolFailure) -> None:
    async def main() -> set[float]:
        pauses = set()
        for _ in range(5):
            one, service = guard(config()), Service(failing(failure, 99))
            assert await outcome(one, service) == str(failure)
            expected = 4 if ProviderError(failure, "").retry else 1
            assert len(service.times) == expected
            pauses |= {b - a for a, b in zip(service.times[:-1], service.times[1:], strict=True)}
        return pauses

    random.seed(0)
    pauses = virtually(main())
    if failure is ToolFailure.UNAVAILABLE:
        assert len(pauses) == 15  # no two alike
        assert max(pauses) < 1.0


def test_a_provider_that_never_answers_costs_its_timeout_and_is_asked_again() -> None:
    async def main() -> None:
        async def answer(n: int) -> str:
            return await (hang(n) if n <= 2 else good(n))

        one, service = guard(config(timeout=10.0)), Service(answer)
        began = now()
        assert await outcome(one, service, 60.0) == "v"
        assert 21.0 <= now() - began < 22.0
        assert one.stats()["timeout"] == 2

    virtually(main())


def test_the_deadline_ends_everything_and_what_it_cut_short_is_not_held_against_the_provider() -> None:
    async def main() -> None:
        settings = config(concurrency=8, timeout=10.0)
        one, service = guard(settings, failures=3), Service(hang)
        began = now()
        results = await asyncio.gather(*(outcome(one, service, 2.0) for _ in range(100)))
        assert (set(results), now() - began) == ({"timeout"}, pytest.approx(2.0))
        assert service.peak == 8
        stats = one.stats()
        assert (stats["concurrency"], stats.get("breaker_opened", 0)) == (8, 0)
        assert await outcome(one, Service(good), 2.0) == "v"  # no slot was lost

    virtually(main())


def test_slots_survive_cancellation_at_any_moment() -> None:
    async def main() -> None:
        one, service = guard(config(rate=20.0, burst=2, concurrency=4)), Service(good)
        rng = random.Random(0)
        calls = [asyncio.create_task(outcome(one, service)) for _ in range(200)]
        for _ in range(150):
            await asyncio.sleep(rng.random() * 0.1)
            rng.choice(calls).cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert service.peak <= 4
        began = now()
        assert await asyncio.gather(*(outcome(one, service) for _ in range(4))) == ["v"] * 4
        assert now() - began < 2.0  # all four slots are there

    virtually(main())


def test_half_open_lets_one_probe_through_and_opens_for_all_when_it_comes_back() -> None:
    async def main() -> None:
        one, service = guard(config(), failures=2, cooldown=5.0, attempts=8), Service(down)
        first = asyncio.create_task(outcome(one, service))
        await asyncio.sleep(1.0)  # open by now
        before = len(service.times)
        service.answer = good
        began = now()
        calls = [asyncio.create_task(outcome(one, service)) for _ in range(50)]
        await asyncio.sleep(4.9)
        assert len(service.times) == before + 1  # the probe, a second long
        assert await asyncio.gather(first, *calls) == ["v"] * 51
        assert now() - began < 4.9 + 1.0 + 1.0  # the others went the moment it was back
        assert service.peak == 50

    virtually(main())


def test_a_failed_probe_sends_everybody_back_to_wait() -> None:
    async def main() -> None:
        one, service = guard(config(), failures=2, cooldown=5.0), Service(down)
        began = now()
        assert set(await asyncio.gather(*(outcome(one, service) for _ in range(100)))) == {"unavailable"}
        assert len(service.times) <= 64 + 4  # those in flight when it opened, then one per cooldown
        assert now() - began < 4 * 5.0 + 5.0

    virtually(main())


def test_an_hour_of_outage_costs_few_requests_and_the_first_minute_after_it_is_well() -> None:
    async def main() -> None:
        one, service = guard(config(concurrency=64), failures=16, cooldown=5.0), Service(down)
        end = now() + 3600.0
        results: list[str] = []

        async def rollout() -> None:
            while now() < end:
                results.append(await outcome(one, service))

        await asyncio.gather(*(rollout() for _ in range(8)))
        assert set(results) == {"unavailable"}
        assert len(service.times) < 3600 / 5 + 8 + 16
        opened, service.answer = one.stats()["breaker_opened"], good
        began, before = now(), len(service.times)
        assert await asyncio.gather(*(outcome(one, service) for _ in range(128))) == ["v"] * 128
        assert now() - began < 20.0
        assert len(service.times) - before == 128
        assert one.stats()["breaker_opened"] == opened

    virtually(main())


def test_concurrency_follows_what_the_service_bears_and_recovers() -> None:
    async def main() -> None:
        bears = 10
        service = Service(good)

        async def answer(n: int) -> str:
            await asyncio.sleep(0.2)
            if service.busy > bears:
                raise ProviderError(ToolFailure.UNAVAILABLE, "HTTP 503: too many at once", status=503)
            return "v"

        service.answer = answer
        one = guard(config(concurrency=64), failures=0, attempts=8)
        first = await asyncio.gather(*(outcome(one, service) for _ in range(600)))
        assert first.count("v") > 570
        stats = one.stats()
        assert stats["concurrency_decreases"] >= 2
        assert stats["concurrency"] <= 32
        bears = 64
        assert set(await asyncio.gather(*(outcome(one, service) for _ in range(3000)))) == {"v"}
        assert one.stats()["concurrency"] == 64

    virtually(main())


def test_a_bad_day_of_failures_limits_and_hangs_loses_no_call_and_no_speed() -> None:
    """20 % failures, 10 % 429s and 5 % hangs under 512 callers at once: work goes on at the service's own pace."""

    async def main() -> None:
        rng = random.Random(0)

        async def answer(n: int) -> str:
            draw = rng.random()
            if draw < 0.2:
                raise ProviderError(ToolFailure.UNAVAILABLE, "HTTP 503", status=503)
            if draw < 0.3:
                raise ProviderError(ToolFailure.RATE_LIMITED, "HTTP 429", retry_after=0.2, status=429)
            return await (hang(n) if draw < 0.35 else good(n))

        one, service = guard(config(concurrency=512), attempts=10), Service(answer)
        began = now()
        results = await asyncio.gather(*(outcome(one, service, 120.0) for _ in range(512)))
        assert results.count("v") == 512
        assert now() - began < 60.0
        assert one.stats().get("breaker_opened", 0) == 0
        assert one.stats()["concurrency"] > 256

    virtually(main())
