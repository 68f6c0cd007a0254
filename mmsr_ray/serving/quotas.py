"""The quotas of keys: one deployment that all ingresses and agents tell, where there are several or money is counted. Thin: the counting
is `limits.Quotas`.

Promise: a key's rate and budget hold however many ingresses there are. Where nobody answers, nobody is let in: the money of a key
is not spent twice because its book-keeper is away. A book-keeper that is replaced starts from nothing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mmsr_ray.config import from_dict
from mmsr_ray.serving.errors import Refused
from mmsr_ray.serving.limits import Quotas
from mmsr_ray.serving.ports import called

logger = logging.getLogger(__name__)
ASK_SECONDS = 10.0


class KeysQuotas(Protocol):
    async def take(self, name: str) -> None:
        """One request of the key `name`. Raises Refused."""
        ...


class OwnQuotas:
    """Of the only ingress, where nobody counts money."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas

    async def take(self, name: str) -> None:
        self._quotas.take(name)


class SharedQuotas:
    """Of an ingress or an agent; `handle` is that of `BookKeeper`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def take(self, name: str) -> None:
        try:
            refused = await asyncio.wait_for(called(self._handle.take.remote(name)), ASK_SECONDS)
        except (TimeoutError, RayError, RayServeException) as error:
            logger.warning("nobody counts requests: %s", type(error).__name__)
            raise Refused("unavailable", "the limits of API keys cannot be checked: try again later", retry_after=2) from None
        if refused is not None:
            raise refused

    async def charge(self, name: str, cost_usd: float) -> None:
        """For searches. Never raises: they were made."""
        try:
            await asyncio.wait_for(called(self._handle.charge.remote(name, cost_usd)), ASK_SECONDS)
        except (TimeoutError, RayError, RayServeException) as error:
            logger.warning("%.4f USD of %s were not counted: %s", cost_usd, name, type(error).__name__)


class BookKeeper:
    """The deployment."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._quotas = Quotas(from_dict(settings).serving)

    async def take(self, name: str) -> Refused | None:
        try:
            self._quotas.take(name)
        except Refused as refused:
            return refused
        return None

    async def charge(self, name: str, cost_usd: float) -> None:
        self._quotas.charge(name, cost_usd)
