"""Requests and updates exclude each other, updates go first, and neither starves after an error."""

import asyncio

import pytest

from mmsr_ray.rollout.turnstile import Turnstile


async def test_updates_wait_for_those_inside_and_keep_others_out() -> None:
    turnstile, log, inside = Turnstile(), [], asyncio.Event()

    async def request(name: str, wait: asyncio.Event | None = None) -> None:
        async with turnstile.passing():
            log.append(f"{name} in")
            if wait is not None:
                await wait.wait()
            log.append(f"{name} out")

    async def update() -> None:
        async with turnstile.held():
            log.append("update")
            await asyncio.sleep(0.01)
            log.append("updated")

    first = asyncio.create_task(request("a", inside))
    await asyncio.sleep(0)
    updates = [asyncio.create_task(update()) for _ in range(2)]
    await asyncio.sleep(0)
    late = asyncio.create_task(request("b"))
    await asyncio.sleep(0.01)
    assert log == ["a in"]
    inside.set()
    await asyncio.wait_for(asyncio.gather(first, late, *updates), 5)
    assert log == ["a in", "a out", "update", "updated", "update", "updated", "b in", "b out"]


async def test_an_error_or_a_cancellation_lets_the_next_ones_in() -> None:
    turnstile = Turnstile()
    with pytest.raises(RuntimeError):
        async with turnstile.held():
            raise RuntimeError
    async with turnstile.passing():
        waiting = asyncio.create_task(_hold(turnstile))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.wait_for(_hold(turnstile), 5)

    async def enter() -> None:
        async with turnstile.passing():
            pass

    await asyncio.wait_for(enter(), 5)


async def _hold(turnstile: Turnstile) -> None:
    async with turnstile.held():
        pass


async def test_many_random_users_never_meet_an_update() -> None:
    turnstile, requests, updates = Turnstile(), 0, 0

    async def request(i: int) -> None:
        nonlocal requests
        await asyncio.sleep(i % 7 / 2000)
        async with turnstile.passing():
            requests += 1
            assert updates == 0
            await asyncio.sleep(i % 5 / 2000)
            requests -= 1

    async def update(i: int) -> None:
        nonlocal updates
        await asyncio.sleep(i % 11 / 2000)
        async with turnstile.held():
            updates += 1
            assert (requests, updates) == (0, 1)
            await asyncio.sleep(0.0005)
            updates -= 1

    await asyncio.wait_for(asyncio.gather(*map(request, range(300)), *map(update, range(30))), 30)
