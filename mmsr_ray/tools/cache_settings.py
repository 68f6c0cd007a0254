"""The settings of the cache, and what is wrong with them. Part of `mmsr_ray.config`, which imports this."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass
class CacheConfig:
    """Where answers that were paid for are kept: a redis for many nodes, a file for one, else memory.

    An answer is kept under the service's kind, address and model, what was asked, and the limits it was cut to; not under
    what the service knew at that moment. Where one address serves different worlds, `namespace` tells them apart (an
    Atlas run is given one by its world).
    """

    dir: str = ""  # folder of the file; "": none
    redis: str = ""  # redis://host:port/db; "": none. A password goes into the variable that redis_password_env names
    redis_password_env: str = ""
    namespace: str = ""  # answers of another namespace are not seen: change it to begin afresh
    memory_bytes: int = 256 << 20  # per actor, in front of the file or the redis
    max_bytes: int = 20 << 30  # of the file; what was not used for longest leaves first; 0: no bound
    days: float = 30.0  # an answer is asked for anew after this time; 0: never
    negative_seconds: float = 300.0  # how long "gone" and "nothing found" are believed


def complaint(c: CacheConfig) -> str:
    """What is impossible about the settings, in one sentence; "" when nothing is."""
    if c.dir and c.redis:
        return "tools.cache.dir and tools.cache.redis are both set: keep the redis for many nodes, the folder for one"
    if c.redis and (said := _redis_complaint(c.redis)):
        return said
    if c.memory_bytes < 1 << 20:
        return "tools.cache.memory_bytes must be at least 1048576"
    if c.max_bytes and c.max_bytes < 1 << 20:
        return "tools.cache.max_bytes must be 0 (no bound) or at least 1048576"
    if c.days < 0:
        return "tools.cache.days must be 0 (for ever) or more"
    if c.negative_seconds < 0:
        return "tools.cache.negative_seconds must be 0 (not believed at all) or more"
    return ""


def _redis_complaint(url: str) -> str:
    """The URL is not repeated: it may hold a password."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number, a broken IPv6 address
        return _NO_ADDRESS
    if parts.password is not None or "password" in parts.query:
        return "tools.cache.redis holds a password: put it into an environment variable and name that in tools.cache.redis_password_env"
    return "" if sound and (parts.path.strip("/") or "0").isdigit() and not parts.query else _NO_ADDRESS


_NO_ADDRESS = "tools.cache.redis is no address of a redis: write redis://host:port/db, or rediss:// for TLS"
