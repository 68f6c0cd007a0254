"""The tools as Ray actors, and the client that rollouts hold.

Promise: `RemoteTools` never raises and never hangs: an actor that died is asked again (calls are idempotent: a cache
and reads), its neighbour next, and every await has a deadline. Equal calls go to the same actor, so that its cache and
single-flight see all of them; rate limits and money are shared through one quota actor.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmsr_ray.config import Config, ToolsConfig
from mmsr_ray.nodes import resources
from mmsr_ray.rewards.judge import Case
from mmsr_ray.tools import taped
from mmsr_ray.tools.errors import ToolsError
from mmsr_ray.tools.exported import Exported
from mmsr_ray.tools.measures import add
from mmsr_ray.tools.pipeline import SearchTools, picture_sha
from mmsr_ray.tools.providers import read_keys
from mmsr_ray.tools.providers.base import Keys
from mmsr_ray.tools.providers.models import Request
from mmsr_ray.tools.purse import FILE as SPENT
from mmsr_ray.tools.purse import Account, SpentFile
from mmsr_ray.tools.quota_actor import QuotaActor, RemoteBank, RemoteQuota
from mmsr_ray.types import ToolFailure, ToolKind, ToolResult

logger = logging.getLogger(__name__)

_CONCURRENCY = 2_000  # calls in flight in one actor; they wait, they do not compute
_GRACE_SECONDS = 5.0  # for the way there and back, beyond the call's own deadline
_START_SECONDS = 120.0
_HANDOVER_SECONDS = 15.0  # for the tools of an earlier submission to end
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Home:
    """Where a tool actor belongs. `seat` tells the actors of a run apart, `fingerprint` the settings that they run with."""

    run: str
    namespace: str
    seat: str
    fingerprint: str


class ToolActor:
    """`SearchTools` behind Ray, behind the run's tape. One event loop, so one session, one cache, one table of flights."""

    def __init__(self, config: ToolsConfig, topk: int, home: Home, keys: Keys) -> None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray shows every card to who asks for none, and they are the runners' and the ranks'
        # by name: a handle among the arguments would tie restarts to the object store
        quota = ray.get_actor(_quota_name(home.run), namespace=home.namespace)
        self._life, self._fingerprint = uuid.uuid4().hex, home.fingerprint
        bank = RemoteBank(quota, home.seat, self._life)

        def live() -> SearchTools:
            return SearchTools(config, topk, RemoteQuota(quota), bank, keys, share=config.actors, observers=[Exported(home.run)])

        self._seat = home.seat
        self._tools = taped.with_tape(live, config, topk, keys)

    def __repr__(self) -> str:
        return self._seat  # in Ray's dashboard and logs

    async def image_search(self, sha: str, picture: bytes, url: str | None) -> ToolResult:
        return await self._tools.picture_search(sha, picture, url)

    async def text_search(self, query: str, question: str) -> ToolResult:
        return await self._tools.text_search(query, question)

    async def judge(self, case: Case) -> ToolResult:
        return await self._tools.judge(case)

    async def complete(self, request: Request) -> ToolResult:
        return await self._tools.complete(request)

    async def find_pictures(self, query: str, wanted: int) -> ToolResult:
        return await self._tools.find_pictures(query, wanted)

    async def read_page(self, url: str) -> ToolResult:
        return await self._tools.read_page(url)

    async def problems(self) -> list[str]:
        return await self._tools.problems()

    async def fingerprint(self) -> str:
        return self._fingerprint

    async def reading(self) -> tuple[str, dict[str, float]]:
        """Which life of this actor it is, and what that has counted."""
        return self._life, self._tools.stats()

    async def settle(self) -> None:
        await self._tools.settle()


class RemoteTools:
    """Satisfies the agent's `Tools` protocol. Picklable: give it to any actor of the job."""

    def __init__(self, actors: Sequence[Any], quota: Any, deadline_seconds: float) -> None:
        self._actors, self._quota, self._deadline = list(actors), quota, deadline_seconds + _GRACE_SECONDS

    @classmethod
    def connect(cls, config: Config) -> RemoteTools:
        """The tools that `start_tools` started for this run, by name. Raises ToolsError when there are none."""
        try:
            quota, *actors = [ray.get_actor(name, namespace=config.run.namespace) for name in _names(config)]
        except ValueError:
            raise ToolsError(f"the tools of run {config.run.name!r} are not running: call start_tools before the rollouts start") from None
        return cls(actors, quota, config.tools.deadline_seconds)

    async def image_search(self, picture_bytes: bytes, url: str | None, question: str) -> ToolResult:
        """Web pages whose main picture looks like this one."""
        sha = picture_sha(picture_bytes, url)
        return await self._call(ToolKind.IMAGE, sha, lambda actor: actor.image_search.remote(sha, picture_bytes, url))

    async def text_search(self, query: str, question: str) -> ToolResult:
        """Summaries of the pages found for `query`, each written for the user's `question`."""
        return await self._call(ToolKind.TEXT, query, lambda actor: actor.text_search.remote(query, question))

    async def judge(self, case: Case) -> ToolResult:
        """Satisfies `rewards.judge.Judge`."""
        return await self._call(ToolKind.JUDGE, case.key, lambda actor: actor.judge.remote(case))

    async def complete(self, request: Request) -> ToolResult:
        """The next turn of tools.model; satisfies `evaluation.endpoint.Model`."""
        return await self._call(ToolKind.MODEL, request.key, lambda actor: actor.complete.remote(request))

    async def find_pictures(self, query: str, wanted: int) -> ToolResult:
        """At most `wanted` pictures of the web for words, with their pages."""
        return await self._call(ToolKind.FINDER, query, lambda actor: actor.find_pictures.remote(query, wanted))

    async def read_page(self, url: str) -> ToolResult:
        """A page: one text hit, its summary the whole text."""
        return await self._call(ToolKind.PAGE, url, lambda actor: actor.read_page.remote(url))

    async def check(self) -> None:
        """Raises ToolsError naming every service that does not answer, and the remedy."""
        try:
            found = await asyncio.wait_for(self._actors[0].problems.remote(), _START_SECONDS)
        except (TimeoutError, RayError) as error:
            raise ToolsError(f"the tool actors do not answer ({type(error).__name__}): look for their error in the Ray logs") from None
        if found:
            raise ToolsError("; ".join(found))

    async def stats(self) -> dict[str, float]:
        """Sums of the actors' counters (names: tools.measures). They go back when an actor restarts: `readings` do not."""
        return add((await self.readings()).values())

    async def readings(self) -> dict[str, dict[str, float]]:
        """What each life of an actor has counted, by life (for measures.Totals); an actor that does not answer is left out."""
        return dict(await self._answers([actor.reading.remote() for actor in self._actors]))

    async def account(self) -> Account | None:
        """The money of the run; None when the actor that keeps it does not answer."""
        return next(iter(await self._answers([self._quota.account.remote()])), None)

    async def settle(self) -> None:
        """At the end of a run: what was leased and not spent goes back, so that the record on disk is exact."""
        await self._answers([actor.settle.remote() for actor in self._actors])

    async def _answers(self, calls: Sequence[Awaitable[T]]) -> list[T]:
        """Those that come in time."""
        answers = await asyncio.gather(*(asyncio.wait_for(_awaited(call), _GRACE_SECONDS) for call in calls), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                logger.warning("a tool actor did not answer: %s", type(answer).__name__)
        return [answer for answer in answers if not isinstance(answer, BaseException)]

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


async def _awaited(call: Awaitable[T]) -> T:
    return await call


def start_tools(config: Config) -> RemoteTools:
    """Start (or find) the quota and tool actors of this run: named, and alive as long as the caller keeps the result.

    Keys are read here, once, from this process's environment; a replay of a tape needs none. Raises ToolsError for a missing
    key, an unknown kind, a tape that cannot be used, actors that do not come up, a record of money that cannot be read, or
    tools of this run that are up with other settings.
    """
    taped.prepare(config)
    keys = read_keys(config.tools) if taped.needs_live(config.tools) else Keys({})
    spent = Path(config.run.dir, config.run.name, SPENT).absolute()
    SpentFile(spent).read()
    mark = fingerprint(config, keys)
    _wait_for_others(config, mark)
    quota_name, *names = _names(config)
    # With this process, which nothing outlives: on another node it could be cut off and replaced, and both would write down what is spent.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    quota = _start(QuotaActor, quota_name, config, max_task_retries=-1, scheduling_strategy=here).remote(config.tools, str(spent), mark)
    actors = []
    for name in names:
        home = Home(config.run.name, config.run.namespace, name, mark)
        there = resources(config.tools.node)
        tool = _start(ToolActor, name, config, max_task_retries=3, max_concurrency=_CONCURRENCY, resources=there)
        actors.append(tool.remote(config.tools, config.agent.topk, home, keys))
    try:
        ray.get([actor.fingerprint.remote() for actor in (quota, *actors)], timeout=_START_SECONDS)
    except (GetTimeoutError, RayError) as error:
        raise ToolsError(
            f"the tool actors did not start in {_START_SECONDS:.0f} s ({type(error).__name__}): see their log in the Ray session"
        ) from error
    return RemoteTools(actors, quota, config.tools.deadline_seconds)


def fingerprint(config: Config, keys: Keys) -> str:
    """Changes with whatever the actors are started with; says nothing about the keys."""
    settings = json.dumps([asdict(config.tools), config.agent.topk, str(Path(config.run.dir).absolute())], sort_keys=True)
    return hashlib.sha256("\0".join([settings, *keys.secrets()]).encode()).hexdigest()


def _wait_for_others(config: Config, mark: str) -> None:
    """Tools of this run with other settings may be those of an earlier submission that is ending. Raises ToolsError if they stay."""
    deadline = time.monotonic() + _HANDOVER_SECONDS
    while others := [name for name in _names(config) if _fingerprint_of(name, config) not in ("", mark)]:
        if time.monotonic() > deadline:
            raise ToolsError(
                f"the tools of run {config.run.name!r} are up with other settings ({', '.join(others)}): "
                "end what uses them (stop_tools ends them alone), or choose another run.name"
            )
        time.sleep(0.5)


def _fingerprint_of(name: str, config: Config) -> str:
    """ "" where no such actor lives."""
    try:
        actor: Any = ray.get_actor(name, namespace=config.run.namespace)
        return str(ray.get(actor.fingerprint.remote(), timeout=_START_SECONDS))
    except (ValueError, RayActorError):
        return ""
    except GetTimeoutError:
        raise ToolsError(f"the actor {name} does not answer: look for its error in the Ray logs") from None


def stop_tools(config: Config) -> None:
    """End the actors of this run; those that are not there are fine."""
    for name in _names(config):
        try:
            ray.kill(ray.get_actor(name, namespace=config.run.namespace))
        except ValueError:
            logger.debug("no actor %s to stop", name)


def _start(actor: type, name: str, config: Config, **options: Any) -> Any:
    made: Any = ray.remote(actor)
    return made.options(
        name=name,
        namespace=config.run.namespace,
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        **options,
    )


def _names(config: Config) -> list[str]:
    """Of the quota actor, then of the tool actors."""
    return [_quota_name(config.run.name), *(f"tools:{config.run.name}:{i}" for i in range(config.tools.actors))]


def _quota_name(run: str) -> str:
    return f"tools:{run}:quota"
