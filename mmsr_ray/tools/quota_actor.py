"""What the whole job shares, in one actor: the services' rate limits and the run's money.

Promise: a restart of the actor forgets the rate limits (one burst too many at worst) and no money: that is on disk, and
leases that were out count as spent. Callers see ProviderError when the actor is lost, never Ray's errors.
"""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

from ray.exceptions import RayError

from mmsr_ray.config import ToolsConfig
from mmsr_ray.tools.errors import ProviderError
from mmsr_ray.tools.limits import Lease
from mmsr_ray.tools.providers import limited_services
from mmsr_ray.tools.purse import Account, Grant, Purse, SpentFile
from mmsr_ray.tools.quota import Buckets
from mmsr_ray.types import ToolFailure

T = TypeVar("T")


class QuotaActor:
    """`spent` is the file that says what the run has spent so far."""

    def __init__(self, config: ToolsConfig, spent: str, fingerprint: str) -> None:
        services = limited_services(config)
        self._buckets, self._fingerprint = Buckets(services), fingerprint
        self._purse = Purse.of(services, config, SpentFile(Path(spent)))

    def fingerprint(self) -> str:
        return self._fingerprint

    def lease(self, service: str, want: int) -> tuple[int, float]:
        lease = self._buckets.lease(service, want)
        return lease.tokens, lease.wait

    def hold(self, service: str, seconds: float) -> None:
        self._buckets.hold(service, seconds)

    def lease_money(self, seat: str, life: str, least: int, want: int, spent: int, back: int) -> Grant:
        return self._purse.lease(seat, life, least=least, want=want, spent=spent, back=back)

    def settle_money(self, seat: str, life: str, spent: int, back: int) -> None:
        self._purse.settle(seat, life, spent=spent, back=back)

    def account(self) -> Account:
        return self._purse.account


class RemoteQuota:
    """Quota through the actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def lease(self, service: str, want: int) -> Lease:
        tokens, wait = await _answer(self._actor.lease.remote(service, want))
        return Lease(tokens, wait)

    async def hold(self, service: str, seconds: float) -> None:
        await _answer(self._actor.hold.remote(service, seconds))


class RemoteBank:
    """Bank through the actor. `seat` names this process among those of the job, `life` this start of it."""

    def __init__(self, actor: Any, seat: str, life: str) -> None:
        self._actor, self._seat, self._life = actor, seat, life

    async def lease(self, least: int, want: int, spent: int, back: int) -> Grant:
        return await _answer(self._actor.lease_money.remote(self._seat, self._life, least, want, spent, back))

    async def settle(self, spent: int, back: int) -> None:
        await _answer(self._actor.settle_money.remote(self._seat, self._life, spent, back))


async def _answer(call: Awaitable[T]) -> T:
    try:
        return await call
    except RayError as error:
        raise ProviderError(ToolFailure.UNAVAILABLE, f"the quota actor is lost ({type(error).__name__})") from None
