"""Money: never more than the budget over all processes, never too little on disk, nothing lost between them."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from mmsr_ray.config import PriceConfig
from mmsr_ray.rewards import judge
from mmsr_ray.tools.errors import ProviderError, ToolsError
from mmsr_ray.tools.providers import summarisers
from mmsr_ray.tools.providers.base import Page, Summary, Usage
from mmsr_ray.tools.purse import NANO, Grant, Purse, SpentFile, Unrecorded, highest, nano, price_of
from mmsr_ray.tools.till import LocalBank, Payer, Till
from mmsr_ray.types import ToolFailure

CENT = nano(0.01)


class Disk:
    """What would be on disk after a kill; counts its writes."""

    def __init__(self, amount: int = 0) -> None:
        self.amount, self.writes = amount, 0

    def read(self) -> int:
        return self.amount

    def write(self, amount: int) -> None:
        self.amount, self.writes = amount, self.writes + 1


def test_prices() -> None:
    price = PriceConfig(per_call=0.001, per_million_input_tokens=0.15, per_million_output_tokens=0.60)
    assert price_of(price, Usage()) == nano(0.001)
    assert price_of(price, Usage(8_000, 200)) == nano(0.001 + 0.0012 + 0.00012)
    bound = highest("summariser", price, page_chars=30_000)
    most = max(summarisers.MAX_TOKENS, judge.MAX_TOKENS)
    assert bound >= price_of(price, Usage(4 * 30_000 + 40_000, most)), "a page of four-byte characters is within the bound"
    assert highest("text_search", PriceConfig(per_call=0.01), 30_000) == CENT
    assert highest("reader", PriceConfig(), 30_000) == 0


def test_a_budget_pays_for_exactly_its_requests() -> None:
    purse = Purse(1.0, Unrecorded(), costliest=nano(0.001))
    paid = 0
    while purse.lease("a", "1", least=nano(0.001), want=nano(0.001)).amount:
        purse.settle("a", "1", spent=nano(0.001), back=0)
        paid += 1
    assert paid == 1000
    assert purse.account.left == 0


def test_without_a_budget_all_is_granted_and_counted() -> None:
    disk = Disk()
    purse = Purse(0.0, disk, costliest=CENT)
    for _ in range(1000):
        assert purse.lease("a", "1", least=CENT, want=CENT).amount == CENT
        purse._account_for("a", "1", CENT, 0)
    assert purse.account.spent == 10.0
    assert disk.amount >= 10 * NANO
    assert disk.writes < 40, "written in strides, not request by request"


def test_refused_for_good_or_for_now() -> None:
    purse = Purse(0.02, Unrecorded(), costliest=CENT)
    assert purse.lease("a", "1", least=CENT, want=CENT) == Grant(CENT)
    assert purse.lease("b", "1", least=CENT, want=CENT) == Grant(CENT)
    refused = purse.lease("c", "1", least=CENT, want=CENT)
    assert refused.amount == 0 and refused.wait > 0, "the others may not spend what they hold"
    purse.settle("a", "1", spent=0, back=CENT)
    assert purse.lease("c", "1", least=CENT, want=CENT) == Grant(CENT)
    purse.settle("b", "1", spent=CENT, back=0)
    purse.settle("c", "1", spent=CENT, back=0)
    assert purse.lease("a", "1", least=CENT, want=CENT) == Grant(0, 0.0)


def test_nobody_hoards_the_last_money() -> None:
    purse = Purse(1.0, Unrecorded(), costliest=CENT)
    assert purse.lease("a", "1", least=CENT, want=100 * CENT).amount == 25 * CENT
    assert purse.lease("b", "1", least=CENT, want=100 * CENT).amount < 20 * CENT


def test_a_dead_process_has_spent_its_lease_and_its_late_words_count_for_nothing() -> None:
    purse = Purse(1.0, Unrecorded(), costliest=CENT)
    purse.lease("a", "first life", least=5 * CENT, want=5 * CENT)
    purse.lease("a", "second life", least=CENT, want=CENT)
    assert purse.account.spent == 0.05
    purse.settle("a", "first life", spent=CENT, back=4 * CENT)
    assert (purse.account.spent, purse.account.leased) == (0.05, 0.01)


@pytest.mark.parametrize("seed", range(20))
def test_a_kill_at_any_point_counts_too_much_never_too_little(seed: int) -> None:
    """Three processes lease, spend and give back; purse and processes die at random. Spent money is always on disk before it is spent."""
    chance = random.Random(seed)
    disk, budget = Disk(), 2.0
    purse = Purse(budget, disk, costliest=CENT)
    held = dict.fromkeys("abc", 0)
    lives = dict.fromkeys("abc", 0)
    really_spent = 0
    for _ in range(600):
        seat = chance.choice("abc")
        match chance.randrange(10):
            case 0 | 1 | 2:
                held[seat] += purse.lease(seat, str(lives[seat]), least=CENT, want=chance.randrange(1, 9) * CENT).amount
            case 3 | 4 | 5 | 6 if held[seat] >= CENT:
                spent = chance.choice([CENT, CENT // 3])
                really_spent += spent
                held[seat] -= spent
                if chance.random() < 0.9:  # else the report is lost on its way
                    purse.settle(seat, str(lives[seat]), spent=spent, back=0)
            case 7:
                purse.settle(seat, str(lives[seat]), spent=0, back=held[seat])
                held[seat] = 0
            case 8 if chance.random() < 0.3:
                held[seat], lives[seat] = 0, lives[seat] + 1
            case 9 if chance.random() < 0.1:
                purse = Purse(budget, disk, costliest=CENT)  # the processes live on with their leases
        assert really_spent <= disk.amount
        assert really_spent + sum(held.values()) <= nano(budget)


def test_the_file_survives_and_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "tools-spent.json"
    purse = Purse(1.0, SpentFile(path), costliest=CENT)
    purse.lease("a", "1", least=CENT, want=4 * CENT)
    assert json.loads(path.read_text())["counted_nano_usd"] >= 4 * CENT, "written before it can be spent"
    killed = Purse(1.0, SpentFile(path), costliest=CENT)
    assert killed.lease("a", "1", least=99 * CENT, want=99 * CENT).amount == 0
    assert killed.account.spent >= 0.04
    purse.settle("a", "1", spent=CENT, back=3 * CENT)
    assert json.loads(path.read_text()) == {"counted_nano_usd": CENT, "counted_usd": 0.01}, "exact when nothing is leased"
    purse.lease("a", "1", least=4 * CENT, want=4 * CENT)
    assert purse.lease("a", "1", least=100 * CENT, want=100 * CENT, spent=2 * CENT, back=2 * CENT).amount == 0
    assert json.loads(path.read_text())["counted_usd"] == 0.03, "after a refusal too"
    for broken in ("", "{", "[]", '{"counted_nano_usd": "1"}', '{"counted_nano_usd": -1}'):
        path.write_text(broken)
        with pytest.raises(ToolsError, match="does not say what this run has spent"):
            Purse(1.0, SpentFile(path), costliest=CENT)


# ---------------------------------------------------------------------------------------------------- the process's side


def soon(seconds: float = 1.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def pay(till: Till, cost: int, *, reserve: int = CENT, seconds: float = 0.0, within: float = 1.0) -> None:
    async with till.reserve("text_search", PriceConfig(), reserve, soon(within)) as bill:
        await asyncio.sleep(seconds)
        bill.cost = cost


async def test_what_a_request_did_not_cost_is_free_again() -> None:
    purse = Purse(0.10, Unrecorded(), costliest=CENT)
    till = Till(LocalBank(purse))
    for _ in range(37):
        await pay(till, CENT // 4)
    with pytest.raises(ProviderError) as refused:  # 0.75 cents are left and a request may cost one
        await pay(till, CENT // 4)
    assert refused.value.failure is ToolFailure.BUDGET and not refused.value.retry
    await till.close()
    assert purse.account.spent == pytest.approx(0.0925)


async def test_what_was_answered_is_billed_by_its_usage() -> None:
    purse = Purse(1.0, Unrecorded(), costliest=CENT)
    price = PriceConfig(per_call=0.001, per_million_input_tokens=1.0)
    payer = Payer(Till(LocalBank(purse)), "summariser", price, page_chars=30_000)
    for value, cost in [
        (Summary("s", Usage(2_000, 10)), 0.003),
        (Page("t", "p", Usage(1_000, 0)), 0.002),
        (["leads"], 0.001),
        (None, 0.001),
    ]:
        async with payer.reserve(soon()) as bill:
            assert bill.usd == 0
            bill.answered(value)
            assert bill.usd == cost


async def test_a_failed_request_costs_nothing() -> None:
    purse = Purse(0.01, Unrecorded(), costliest=CENT)
    till = Till(LocalBank(purse))
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            async with till.reserve("text_search", PriceConfig(), CENT, soon()):
                _ = 1 / 0
    await pay(till, CENT)
    await till.close()
    assert purse.account.spent == 0.01


async def test_the_last_money_is_waited_for_while_others_hold_it() -> None:
    purse = Purse(0.02, Unrecorded(), costliest=2 * CENT)
    till = Till(LocalBank(purse))
    costly = asyncio.create_task(pay(till, CENT, reserve=2 * CENT, seconds=0.5))
    await asyncio.sleep(0.05)
    with pytest.raises(ProviderError, match="held by other requests"):
        await pay(till, CENT, within=0.1)
    await pay(till, CENT, within=2.0)  # gets what the first one left over
    await costly
    with pytest.raises(ProviderError, match="what is left"):
        await pay(till, CENT)


async def test_two_processes_never_starve_each_other_and_free_services_never_wait() -> None:
    class Other(LocalBank):
        async def lease(self, least: int, want: int, spent: int, back: int) -> Grant:
            return self._purse.lease("other", "", least=least, want=want, spent=spent, back=back)

        async def settle(self, spent: int, back: int) -> None:
            self._purse.settle("other", "", spent=spent, back=back)

    purse = Purse(0.30, Unrecorded(), costliest=CENT)
    tills = [Till(LocalBank(purse)), Till(Other(purse))]
    done = await asyncio.gather(*(pay(tills[i % 2], CENT, seconds=0.01, within=5.0) for i in range(60)), return_exceptions=True)
    assert sum(result is None for result in done) == 30, "every cent was spent, none twice"
    assert {result.failure for result in done if isinstance(result, ProviderError)} == {ToolFailure.BUDGET}
    for till in tills:
        await pay(till, 0, reserve=0)
        await till.close()
    assert purse.account.spent == 0.30


async def test_a_caller_that_gives_up_loses_no_money() -> None:
    class Slow(LocalBank):
        async def lease(self, least: int, want: int, spent: int, back: int) -> Grant:
            await asyncio.sleep(0.1)
            return await super().lease(least, want, spent, back)

    purse = Purse(0.01, Unrecorded(), costliest=CENT)
    till = Till(Slow(purse))
    with pytest.raises(ProviderError) as silent:
        await pay(till, CENT, within=0.02)
    assert silent.value.failure is ToolFailure.UNAVAILABLE, "no answer is not: no money"
    await asyncio.sleep(0.2)
    await pay(till, CENT)


async def test_idle_money_goes_back() -> None:
    purse = Purse(1.00, Unrecorded(), costliest=CENT)
    till = Till(LocalBank(purse))
    await pay(till, CENT)
    assert purse.account.leased > 0
    await asyncio.sleep(1.2)
    assert (purse.account.spent, purse.account.leased) == (0.01, 0.0)
