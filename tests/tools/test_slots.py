"""The queue for slots: order, deadlines, cancellation at the worst moment."""

from __future__ import annotations

import asyncio

import pytest

from mmsr_ray.tools.limits import Aimd
from mmsr_ray.tools.slots import Slots
from tests.tools.virtual import virtually


def now() -> float:
    return asyncio.get_running_loop().time()


def test_never_more_than_the_limit_and_first_come_first_served() -> None:
    async def main() -> None:
        slots, order, busy, peak = Slots(Aimd(3)), [], 0, 0

        async def work(i: int) -> None:
            nonlocal busy, peak
            await slots.take(now() + 100)
            order.append(i)
            busy, peak = busy + 1, max(peak, busy + 1)
            await asyncio.sleep(1)
            busy -= 1
            slots.give_back()

        await asyncio.gather(*(work(i) for i in range(20)))
        assert (peak, order, slots.taken) == (3, list(range(20)), 0)

    virtually(main())


def test_a_newcomer_does_not_overtake_the_queue() -> None:
    async def main() -> None:
        slots = Slots(Aimd(1))
        await slots.take(now() + 10)
        waiting = asyncio.create_task(slots.take(now() + 10))
        await asyncio.sleep(0)
        slots.give_back()  # the slot is the waiting one's from here on, though it has not run yet
        newcomer = asyncio.create_task(slots.take(now() + 10))
        await waiting
        assert not newcomer.done()
        slots.give_back()
        await newcomer

    virtually(main())


def test_deadline_in_the_queue() -> None:
    async def main() -> None:
        slots = Slots(Aimd(1))
        await slots.take(now() + 10)
        began = now()
        with pytest.raises(TimeoutError):
            await slots.take(now() + 2)
        assert now() - began == pytest.approx(2)
        slots.give_back()
        await slots.take(now() + 1)  # the one that left stands in nobody's way
        assert slots.taken == 1

    virtually(main())


def test_cancelled_in_the_queue_or_with_the_slot_in_hand() -> None:
    async def main() -> None:
        slots = Slots(Aimd(1))
        await slots.take(now() + 10)
        first, second, third = (asyncio.create_task(slots.take(now() + 10)) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        slots.give_back()  # to the second, which is cancelled before it runs
        second.cancel()
        await asyncio.wait_for(third, 1)
        assert first.cancelled()
        assert second.cancelled()
        assert slots.taken == 1

    virtually(main())


def test_a_lower_limit_lets_those_in_flight_finish_and_a_higher_one_lets_several_in() -> None:
    async def main() -> None:
        aimd = Aimd(4)
        slots = Slots(aimd)
        for _ in range(4):
            await slots.take(now() + 10)
        for _ in range(3):
            aimd.overload(aimd.epoch)
        assert aimd.limit == 2
        waiting = [asyncio.create_task(slots.take(now() + 10)) for _ in range(3)]
        for expected in (0, 0, 1):
            slots.give_back()
            await asyncio.sleep(0.01)
            assert sum(task.done() for task in waiting) == expected
        for _ in range(2):
            aimd.success(aimd.epoch)
        assert aimd.limit == 3
        slots.give_back()
        await asyncio.sleep(0.01)
        assert sum(task.done() for task in waiting) == 3
        assert slots.taken == 3

    virtually(main())
