"""Searches with a tape before them: recorded, replayed, or both.

Promise: with `tools.tape.mode` record or replay_then_live, a call is answered from the tape where it has an answer there,
else live, and what comes back is what was written down. With replay nothing is asked of anybody: no key, no service, no
network is needed, and what is not on the tape is a TAPE_MISS, which ends the run. A result from the tape costs nothing and
is `cached`; `seconds` are those of reading it. What the model sees of it is identical.

A replay is the recorded run again as long as the policy says the same. On CPUs it does, bit by bit, where config, seed and
machine are the same, `grpo.staleness` is 0, `rollout.seeded` is on, and no rollout was lost (`infra_errors` is 0
in every step): a search that failed for one rollout and was answered later is answered for both in a replay. Elsewhere
(GPUs, staleness, other machines) the last bit of a log-prob differs, in time a word does, and then a query: use
replay_then_live there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from mmsr_ray.config import Config, ToolsConfig
from mmsr_ray.rewards.judge import Case
from mmsr_ray.tools import tape
from mmsr_ray.tools.errors import Redactor, ToolsError
from mmsr_ray.tools.measures import Measures, add
from mmsr_ray.tools.providers.base import Keys
from mmsr_ray.tools.providers.models import Request
from mmsr_ray.tools.tape import Call, Tape, TapeDamaged
from mmsr_ray.types import ImageHit, TextHit, ToolFailure, ToolKind, ToolResult

logger = logging.getLogger(__name__)


class Searches(Protocol):
    """What a tape can stand before: pipeline.SearchTools, and Taped itself."""

    async def picture_search(self, sha: str, data: bytes, url: str | None) -> ToolResult: ...

    async def text_search(self, query: str, question: str) -> ToolResult: ...

    async def judge(self, case: Case) -> ToolResult: ...

    async def complete(self, request: Request) -> ToolResult: ...

    async def find_pictures(self, query: str, wanted: int) -> ToolResult: ...

    async def read_page(self, url: str) -> ToolResult: ...

    async def problems(self) -> list[str]: ...

    def stats(self) -> dict[str, float]: ...

    async def settle(self) -> None: ...

    async def close(self) -> None: ...


def needs_live(config: ToolsConfig) -> bool:
    """False where everything comes from the tape: then no key is read and no service is asked."""
    return config.tape.mode != "replay"


def prepare(config: Config) -> None:
    """Once, before the first `with_tape`, by whoever starts the tools. Raises ToolsError for a tape that cannot be used."""
    mode, folder = config.tools.tape.mode, Path(config.tools.tape.dir)
    if mode == "off":
        return
    try:
        if mode == "record" or (mode == "replay_then_live" and not (folder / tape.HEADER).is_file()):
            tape.claim(folder, config.run.name, config.tools)
        tape.header(folder)
        opened = Tape(folder)
        opened.close()
    except (OSError, TapeDamaged) as error:
        raise ToolsError(f"the tape in {folder} cannot be used: {error}") from error
    if mode == "replay" and not len(opened):
        raise ToolsError(_empty(folder))
    logger.info("tape %s: %d calls, mode %s", folder, len(opened), mode)


def with_tape(make: Callable[[], Searches], config: ToolsConfig, topk: int, keys: Keys) -> Searches:
    """The live searches that `make` gives, behind the tape that the config asks for. Raises TapeDamaged and OSError."""
    if config.tape.mode == "off":
        return make()
    return Taped(Tape(Path(config.tape.dir)), make() if needs_live(config) else None, topk, Redactor(keys.secrets()), config.tape.dir)


class Taped:
    """`live` None: replay. Of one event loop."""

    def __init__(self, opened: Tape, live: Searches | None, topk: int, redact: Redactor, folder: str) -> None:
        self._tape, self._live, self._topk, self._redact, self._folder = opened, live, topk, redact, folder
        self._counts: Counter[str] = Counter()
        self._measures = Measures()  # of the calls that the live searches never heard of

    async def picture_search(self, sha: str, data: bytes, url: str | None) -> ToolResult:
        live = self._live
        ask = None if live is None else lambda: live.picture_search(sha, data, url)
        return await self._call(Call(ToolKind.IMAGE, sha, "", self._topk), ask)

    async def text_search(self, query: str, question: str) -> ToolResult:
        live = self._live
        ask = None if live is None else lambda: live.text_search(query, question)
        return await self._call(Call(ToolKind.TEXT, query, question, self._topk), ask)

    async def judge(self, case: Case) -> ToolResult:
        live = self._live
        ask = None if live is None else lambda: live.judge(case)
        return await self._call(Call(ToolKind.JUDGE, case.key, case.question, self._topk), ask)

    async def complete(self, request: Request) -> ToolResult:
        live = self._live
        ask = None if live is None else lambda: live.complete(request)
        return await self._call(Call(ToolKind.MODEL, request.key, "", self._topk), ask)

    async def find_pictures(self, query: str, wanted: int) -> ToolResult:
        live = self._live
        ask = None if live is None else lambda: live.find_pictures(query, wanted)
        return await self._call(Call(ToolKind.FINDER, query, "", wanted), ask)

    async def read_page(self, url: str) -> ToolResult:
        live = self._live
        ask = None if live is None else lambda: live.read_page(url)
        return await self._call(Call(ToolKind.PAGE, url, "", self._topk), ask)

    async def _call(self, call: Call, ask: Callable[[], Awaitable[ToolResult]] | None) -> ToolResult:
        """The boundary: a tape that cannot be read or written is a typed failure too."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            found = self._tape.find(call)
            if found is not None and (ask is None or found.failure is None or not found.failure.infra):
                self._counts["tape.hits"] += 1
                result = replace(found, seconds=loop.time() - began, cached=True, attempts=1, cost_usd=0.0)
            elif ask is not None:
                return await self._live_call(call, ask)
            else:
                detail = f"the tape in {self._folder} has no {call}: record it with tools.tape.mode=replay_then_live"
                result = ToolResult(call.kind, call.query, failure=ToolFailure.TAPE_MISS, detail=detail)
                self._counts["tape.misses"] += 1
        except (OSError, TapeDamaged) as error:
            failure = ToolFailure.TAPE_MISS if ask is None else ToolFailure.UNAVAILABLE
            logger.error("the tape in %s cannot be used: %s", self._folder, error)
            result = ToolResult(call.kind, call.query, failure=failure, detail=f"the tape cannot be used: {error}")
        self._measures.call(result)
        return result

    async def _live_call(self, call: Call, ask: Callable[[], Awaitable[ToolResult]]) -> ToolResult:
        """Asked and written down. What comes back was read from the tape, but for what this call took and cost."""
        asked = self._without_secrets(await ask())
        kept = self._tape.keep(call, asked)
        self._counts["tape.recorded"] += 1
        return replace(asked, hits=kept.hits, failure=kept.failure, detail=kept.detail, partial=kept.partial)

    def _without_secrets(self, result: ToolResult) -> ToolResult:
        """Hits are foreign text and may hold anything, a key that was in a request's URL too."""

        def clean(hit: ImageHit | TextHit) -> ImageHit | TextHit:
            texts = {name: self._redact(value) for name in type(hit).__slots__ if isinstance(value := getattr(hit, name), str)}
            return replace(hit, **texts)

        hits = tuple(clean(hit) for hit in result.hits)
        return replace(result, hits=hits, detail=self._redact(result.detail))  # type: ignore[arg-type]  # still all of one kind

    async def problems(self) -> list[str]:
        """Those of the services where they may be asked; in a replay, that the tape is missing or empty."""
        if self._live is not None:
            return await self._live.problems()
        return [] if len(self._tape) else [_empty(Path(self._folder))]

    def stats(self) -> dict[str, float]:
        """The live searches' counters, the calls that the tape answered added to theirs, and tape.hits, .misses, .recorded."""
        live = {} if self._live is None else self._live.stats()
        return add([live, self._measures.stats(), {name: float(count) for name, count in self._counts.items()}])

    async def settle(self) -> None:
        if self._live is not None:
            await self._live.settle()

    async def close(self) -> None:
        self._tape.close()
        if self._live is not None:
            await self._live.close()


def _empty(folder: Path) -> str:
    return f"there is nothing on the tape in {folder}: record a run with tools.tape.mode=record, or correct tools.tape.dir"
