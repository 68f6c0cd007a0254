"""Money: what a whole run may spend, and the leases of it from which each process pays.

Promise: what is spent and what is leased never exceed the budget together, over all processes and all submissions of a
run, as long as no service bills more than `highest` for one request (what it bills beyond that is counted too). Money is
on disk as spent before it is leased, so that a kill at any point counts too much and never too little: at most one
stride and the leases that were out. Amounts are whole nano-USD: a budget of 1 USD pays for exactly 1000 requests of
0.001. Pure but for `SpentFile`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from mmsr_ray.config import PriceConfig, ProviderConfig, ToolsConfig
from mmsr_ray.tools.errors import ToolsError
from mmsr_ray.tools.providers.base import Usage

FILE = "tools-spent.json"
NANO = 1_000_000_000
AGAIN_SECONDS = 0.2  # until somebody who is refused asks again, while leases are out that may come back
_BYTES_PER_CHAR = 4  # of UTF-8; no tokenizer in use makes more tokens than bytes
_PROMPT_CHARS = 20_000  # room for the instructions and the question, which is in the prompt twice
_CHAT_TOKENS = 4096  # the largest max_tokens of the chat services
_STRIDES = 200  # a budget is written off on disk in this many parts: few writes, little lost to a kill


def nano(usd: float) -> int:
    """USD in nano-USD."""
    return round(usd * NANO)


def price_of(price: PriceConfig, usage: Usage) -> int:
    """What one answer costs, in nano-USD."""
    tokens = usage.input_tokens * price.per_million_input_tokens + usage.output_tokens * price.per_million_output_tokens
    return nano(price.per_call + tokens / 1e6)


def highest(service: str, price: PriceConfig, page_chars: int) -> int:
    """The most that one request may cost, in nano-USD: a whole page of the longest characters in and, of a reader, out."""
    longest = _BYTES_PER_CHAR * (page_chars + _PROMPT_CHARS)
    return price_of(price, Usage(longest, longest if service == "reader" else _CHAT_TOKENS))


@dataclass(frozen=True, slots=True)
class Grant:
    """`amount` nano-USD are leased. 0: refused, for good when `wait` is 0, else ask again in `wait` seconds."""

    amount: int
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Account:
    """In USD. `budget` 0: no limit. `leased` is with processes that may yet spend it."""

    budget: float
    spent: float
    leased: float

    @property
    def left(self) -> float:
        return round(self.budget - self.spent, 9) if self.budget else float("inf")


class SpentRecord(Protocol):
    """Where the money that is counted as spent outlives this process, in nano-USD. `write` is durable when it returns."""

    def read(self) -> int: ...

    def write(self, amount: int) -> None: ...


class Unrecorded:
    """Forgotten when the process ends."""

    def read(self) -> int:
        return 0

    def write(self, amount: int) -> None:
        pass


class SpentFile:
    """A small JSON file that appears whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int:
        """0 where there is no file. Raises ToolsError for one that cannot be understood: money must not be forgotten."""
        if not self._path.exists():
            return 0
        try:
            amount = json.loads(self._path.read_text())["counted_nano_usd"]
        except (ValueError, KeyError, TypeError):
            amount = None
        if not isinstance(amount, int) or amount < 0:
            raise ToolsError(
                f'{self._path} does not say what this run has spent: write {{"counted_nano_usd": <USD x {NANO}>}} into it from your bills'
            )
        return amount

    def write(self, amount: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(self._path.name + ".partial")
        with partial.open("w") as file:
            json.dump({"counted_nano_usd": amount, "counted_usd": amount / NANO}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename too
        finally:
            os.close(folder)


@dataclass(slots=True)
class _Lease:
    life: str
    amount: int = 0


class Purse:
    """The money of a run. A holder is a `seat` (one process of the job) in one of its lives."""

    def __init__(self, budget_usd: float, record: SpentRecord, *, costliest: int) -> None:
        """`costliest` is the highest price of a request of any service, in nano-USD. Raises ToolsError as the record does."""
        self._budget, self._record = nano(budget_usd), record
        self._stride = max(costliest, self._budget // _STRIDES if self._budget else 64 * costliest)
        self._spent = self._written = record.read()
        self._leases: dict[str, _Lease] = {}

    @classmethod
    def of(cls, services: Mapping[str, ProviderConfig], tools: ToolsConfig, record: SpentRecord) -> Self:
        """The purse of tools with these services. Nothing is ever written where none has a price."""
        return cls(tools.budget_usd, record, costliest=max(highest(name, s.price, tools.page_chars) for name, s in services.items()))

    def lease(self, seat: str, life: str, *, least: int, want: int, spent: int = 0, back: int = 0) -> Grant:
        """Between `least` and `want` nano-USD. `spent` and `back` leave the holder's earlier leases first (`settle`)."""
        self._account_for(seat, life, spent, back)
        lease = self._holder(seat, life)
        if self._budget:
            left = self._budget - self._spent - self._leased
            if left < least:
                self._tidy()
                return Grant(0, AGAIN_SECONDS if self._budget - self._spent >= least else 0.0)
            want = min(want, left // 4)  # towards the end nobody hoards
        amount = max(least, want)
        lease.amount += amount
        self._write_ahead()
        return Grant(amount)

    def settle(self, seat: str, life: str, *, spent: int, back: int) -> None:
        """A holder has spent and gives back. When nothing is leased any more the exact sum is written."""
        self._account_for(seat, life, spent, back)
        self._tidy()

    def _account_for(self, seat: str, life: str, spent: int, back: int) -> None:
        """From a holder that is not known nothing is taken: its lease counts as spent already."""
        lease = self._leases.get(seat)
        if lease is None or lease.life != life:
            return
        lease.amount = max(0, lease.amount - spent - back)
        self._spent += spent
        self._write_ahead()

    def _tidy(self) -> None:
        if self._leased == 0 and self._written != self._spent:
            self._written = self._spent
            self._record.write(self._written)

    @property
    def account(self) -> Account:
        return Account(self._budget / NANO, self._spent / NANO, self._leased / NANO)

    @property
    def _leased(self) -> int:
        return sum(lease.amount for lease in self._leases.values())

    def _holder(self, seat: str, life: str) -> _Lease:
        lease = self._leases.get(seat)
        if lease is None or lease.life != life:
            if lease is not None:
                self._spent += lease.amount  # that life ended without a word: it may have spent everything
            lease = self._leases[seat] = _Lease(life)
        return lease

    def _write_ahead(self) -> None:
        total = self._spent + self._leased
        if total > self._written:
            self._written = total + self._stride
            if self._budget:
                self._written = max(total, min(self._written, self._budget))
            self._record.write(self._written)
