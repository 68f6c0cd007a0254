"""The store that a run's config asks for."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path

from mmsr_ray.config import CacheConfig
from mmsr_ray.tools.errors import ToolsError
from mmsr_ray.tools.stores.base import FORMAT, LayeredStore, MemoryStore, QuickStore, Store
from mmsr_ray.tools.stores.redis import RedisStore
from mmsr_ray.tools.stores.sqlite import SqliteStore


def open_store(config: CacheConfig, counts: Counter[str], password: str = "") -> QuickStore:
    """Memory, in front of the redis or of a file in `config.dir` where there is one. What fails is counted in `counts`.

    Raises ToolsError where there can be no file.
    """
    memory = MemoryStore(config.memory_bytes)
    if config.redis:
        back: Store = RedisStore(config.redis, password)
    elif config.dir:
        try:
            back = SqliteStore(Path(config.dir) / f"tools-{FORMAT}.sqlite", config.max_bytes)
        except (sqlite3.Error, OSError) as error:
            raise ToolsError(f"tools.cache.dir={config.dir!r} cannot hold the cache ({error}): name a folder of a local disk") from None
    else:
        return memory
    return LayeredStore(memory, back, counts)
