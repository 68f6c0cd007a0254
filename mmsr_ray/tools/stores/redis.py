"""A redis shared by many nodes.

Promise: an entry leaves by its own time to live; how much is kept is the server's affair (set its maxmemory, and
maxmemory-policy to allkeys-lru). Keys begin with the product and the format, so a redis may be shared with others.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Sequence
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from yarl import URL

from mmsr_ray.tools.limits import Clock
from mmsr_ray.tools.stores.base import FORMAT, Entry, Item, StoreError

PREFIX = f"mmsr-ray:tools:{FORMAT}"

_HEAD = struct.Struct("<?d")  # found, expires
_SECONDS = 1.0  # to connect, to wait for a connection, and for an answer
_CONNECTIONS = 8  # per process: requests are batches, one that reads and one that writes at a time


class RedisStore:
    """`url` is redis:// or rediss:// (TLS); `password` "" where the server wants none."""

    def __init__(self, url: str, password: str = "", clock: Clock = time.time) -> None:
        self._where, self._clock = str(URL(url).with_user(None)), clock
        pool = BlockingConnectionPool.from_url(
            url,
            password=password or None,
            max_connections=_CONNECTIONS,
            timeout=_SECONDS,
            socket_timeout=_SECONDS,
            socket_connect_timeout=_SECONDS,
            retry=Retry(NoBackoff(), 1, (RedisConnectionError,)),  # once: after a restart of the server pooled connections are dead
        )
        self._redis = Redis.from_pool(pool)

    async def get_all(self, keys: Sequence[tuple[str, str]]) -> list[Entry | None]:
        try:
            found: list[Any] = await self._redis.mget([f"{PREFIX}:{layer}:{key}" for layer, key in keys])
        except (RedisError, OSError) as error:
            raise self._failure(error) from None
        return [self._entry(data) for data in found]

    def _entry(self, data: bytes | None) -> Entry | None:
        if data is None or len(data) < _HEAD.size:
            return None
        found, expires = _HEAD.unpack_from(data)
        return Entry(data[_HEAD.size :], expires, found) if expires > self._clock() else None

    async def put_all(self, items: Sequence[Item]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for layer, key, entry in items:
            left = entry.expires - self._clock()
            if left > 0:
                lifetime = None if left == float("inf") else max(1, round(left * 1000))
                pipeline.set(f"{PREFIX}:{layer}:{key}", _HEAD.pack(entry.found, entry.expires) + entry.value, px=lifetime)
        try:
            await pipeline.execute()
        except (RedisError, OSError) as error:
            raise self._failure(error) from None

    async def close(self) -> None:
        await self._redis.aclose()

    async def problem(self) -> str:
        try:
            async with asyncio.timeout(2 * _SECONDS):
                await self._redis.execute_command("PING")
        except AuthenticationError:
            return f"tools.cache.redis: {self._where} refuses the password: set the variable that tools.cache.redis_password_env names"
        except (RedisError, OSError, TimeoutError) as error:
            return f"tools.cache.redis: nothing answers at {self._where} ({type(error).__name__}): start the redis or correct the address"
        return ""

    def _failure(self, error: Exception) -> StoreError:
        """Names the server and the kind of error; the server's own words may hold what was sent."""
        return StoreError(f"{self._where}: {type(error).__name__}")
