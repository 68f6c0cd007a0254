"""The tools as Ray actors, and the client that rollouts hold.

Promise: `RemoteTools` never raises and never hangs: an actor that died is asked again (calls are idempotent: a cache
and reads), its neighbour next, and every await has a deadline. Equal calls go to the same actor, so that its cache and
single-flight see all of them; rate limits are shared through one quota actor.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from mmsr_ray.config import Config, ToolsConfig
from mmsr_ray.tools.errors import ProviderError, ToolsError
from mmsr_ray.tools.limits import Lease
from mmsr_ray.tools.pipeline import SearchTools
from mmsr_ray.tools.providers import limited_services, read_keys
from mmsr_ray.tools.providers.base import Keys
from mmsr_ray.tools.quota import Buckets
from mmsr_ray.types import ToolFailure, ToolKind, ToolResult

logger = logging.getLogger(__name__)

_CONCURRENCY = 2_000  # calls in flight in one actor; they wait, they do not compute
_GRACE_SECONDS = 5.0  # for the way there and back, beyond the call's own deadline
_START_SECONDS = 120.0


class QuotaActor:
    """The rate limits of the job. A restart forgets what was spent: one burst too many at worst."""

    def __init__(self, config: ToolsConfig) -> None:
        self._buckets = Buckets(limited_services(config))

    def lease(self, service: str, want: int) -> tuple[int, float]:
        lease = self._buckets.lease(service, want)
        return lease.tokens, lease.wait

    def hold(self, service: str, seconds: float) -> None:
        self._buckets.hold(service, seconds)


class RemoteQuota:
    """Quota through the actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def lease(self, service: str, want: int) -> Lease:
        try:
            tokens, wait = await self._actor.lease.remote(service, want)
        except RayError as error:
            raise ProviderError(ToolFailure.UNAVAILABLE, f"the quota actor is lost ({type(error).__name__})") from None
        return Lease(tokens, wait)

    async def hold(self, service: str, seconds: float) -> None:
        try:
            await self._actor.hold.remote(service, seconds)
        except RayError as error:
            raise ProviderError(ToolFailure.UNAVAILABLE, f"the quota actor is lost ({type(error).__name__})") from None


class ToolActor:
    """`SearchTools` behind Ray. One event loop, so one session, one cache, one table of flights."""

    def __init__(self, config: ToolsConfig, topk: int, quota_name: str, namespace: str, keys: Keys) -> None:
        quota = ray.get_actor(
            quota_name, namespace=namespace
        )  # by name: a handle among the arguments would tie restarts to the object store
        self._tools = SearchTools(config, topk, RemoteQuota(quota), keys, share=config.actors)

    async def image_search(self, sha: str, picture: bytes, url: str | None) -> ToolResult:
        return await self._tools.picture_search(sha, picture, url)

    async def text_search(self, query: str, question: str) -> ToolResult:
        return await self._tools.text_search(query, question)

    async def problems(self) -> list[str]:
        return await self._tools.problems()

    async def stats(self) -> dict[str, float]:
        return self._tools.stats()


class RemoteTools:
    """Satisfies the agent's `Tools` protocol. Picklable: give it to any actor of the job."""

    def __init__(self, actors: Sequence[Any], deadline_seconds: float, owned: Sequence[Any] = ()) -> None:
        self._actors, self._deadline = list(actors), deadline_seconds + _GRACE_SECONDS
        self._owned = list(owned)  # Ray ends a named actor with its creator's last handle

    @classmethod
    def connect(cls, config: Config) -> RemoteTools:
        """The tools that `start_tools` started for this run, by name. Raises ToolsError when there are none."""
        try:
            actors = [ray.get_actor(_name(config, i), namespace=config.run.namespace) for i in range(config.tools.actors)]
        except ValueError:
            raise ToolsError(f"the tools of run {config.run.name!r} are not running: call start_tools before the rollouts start") from None
        return cls(actors, config.tools.deadline_seconds)

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        """Web pages whose main picture looks like this one."""
        sha = hashlib.sha256(picture_bytes).hexdigest()
        return await self._call(ToolKind.IMAGE, sha, lambda actor: actor.image_search.remote(sha, picture_bytes, url))

    async def text_search(self, query: str, question: str) -> ToolResult:
        """Summaries of the pages found for `query`, each written for the user's `question`."""
        return await self._call(ToolKind.TEXT, query, lambda actor: actor.text_search.remote(query, question))

    async def check(self) -> None:
        """Raises ToolsError naming every service that does not answer, and the remedy."""
        try:
            found = await asyncio.wait_for(self._actors[0].problems.remote(), _START_SECONDS)
        except (TimeoutError, RayError) as error:
            raise ToolsError(f"the tool actors do not answer ({type(error).__name__}): look for their error in the Ray logs") from None
        if found:
            raise ToolsError("; ".join(found))

    async def stats(self) -> dict[str, float]:
        """Sums of the actors' counters (pipeline.SearchTools.stats); an actor that is restarting counts as zero."""
        total: dict[str, float] = {}
        for stats in await asyncio.gather(
            *(asyncio.wait_for(a.stats.remote(), _GRACE_SECONDS) for a in self._actors), return_exceptions=True
        ):
            if isinstance(stats, BaseException):
                logger.warning("a tool actor has no stats: %s", type(stats).__name__)
                continue
            for key, value in stats.items():
                total[key] = total.get(key, 0.0) + value
        return total

    async def _call(self, kind: ToolKind, query: str, send: Callable[[Any], Awaitable[ToolResult]]) -> ToolResult:
        loop = asyncio.get_running_loop()
        start, home = loop.time(), int(hashlib.sha256(query.encode("utf-8", "replace")).hexdigest()[:8], 16)
        why = ""
        for attempt in range(2 * len(self._actors)):
            try:
                async with asyncio.timeout_at(start + self._deadline):
                    if attempt:
                        await asyncio.sleep(0.1 * attempt)
                    return await send(self._actors[(home + attempt) % len(self._actors)])
            except (TimeoutError, GetTimeoutError):
                why = "the tool actor did not answer in time"
                return ToolResult(kind, query, failure=ToolFailure.TIMEOUT, detail=why, seconds=loop.time() - start)
            except RayActorError as error:
                why = f"tool actor lost ({type(error).__name__})"
            except RayError as error:
                why = f"tool actor failed ({type(error).__name__})"
                logger.exception("tool actor failed")
        return ToolResult(kind, query, failure=ToolFailure.UNAVAILABLE, detail=why, seconds=loop.time() - start)


def start_tools(config: Config) -> RemoteTools:
    """Start (or find) the quota and tool actors of this run: named, and alive as long as the caller keeps the result.

    Keys are read here, once, from this process's environment. Raises ToolsError for a missing key, an unknown kind or
    actors that do not come up.
    """
    keys = read_keys(config.tools)
    quota_name = f"tools:{config.run.name}:quota"
    quota = _start(QuotaActor, quota_name, config, max_task_retries=-1).remote(config.tools)
    tool = {"max_task_retries": 3, "max_concurrency": _CONCURRENCY}
    given = (config.tools, config.agent.topk, quota_name, config.run.namespace, keys)
    actors = [_start(ToolActor, _name(config, i), config, **tool).remote(*given) for i in range(config.tools.actors)]
    try:
        ray.get([actor.stats.remote() for actor in actors], timeout=_START_SECONDS)
    except (GetTimeoutError, RayError) as error:
        raise ToolsError(
            f"the tool actors did not start in {_START_SECONDS:.0f} s ({type(error).__name__}): see their log in the Ray session"
        ) from error
    return RemoteTools(actors, config.tools.deadline_seconds, owned=[quota])


def stop_tools(config: Config) -> None:
    """End the actors of this run; those that are not there are fine."""
    for name in [*(_name(config, i) for i in range(config.tools.actors)), f"tools:{config.run.name}:quota"]:
        try:
            ray.kill(ray.get_actor(name, namespace=config.run.namespace))
        except ValueError:
            logger.debug("no actor %s to stop", name)


def _start(actor: type, name: str, config: Config, **options: Any) -> Any:
    made: Any = ray.remote(actor)
    return made.options(name=name, namespace=config.run.namespace, get_if_exists=True, num_cpus=0, max_restarts=-1, **options)


def _name(config: Config, index: int) -> str:
    return f"tools:{config.run.name}:{index}"
