"""Judging an answer: a case in, one verdict out. Equal cases are judged once and the verdict is kept.

A verdict travels as a tool result with one text hit, so that it is paid for, limited, cached and taped as a search is.
"""

from __future__ import annotations

import json

from mmsr_ray.rewards.judge import NO, YES, Case
from mmsr_ray.tools.cache import key_of
from mmsr_ray.tools.guard import Trace
from mmsr_ray.tools.parts import Parts
from mmsr_ray.types import TextHit


class JudgeTool:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def judge(self, case: Case, trace: Trace) -> list[TextHit]:
        """One hit: its title is the verdict, its summary the reason. Raises ProviderError."""
        provider = self._parts.providers.judge

        async def produce() -> bytes:
            decided = await self._parts.guards["judge"].call(trace, lambda: provider.decide(case))
            return decided.text.encode()

        right, reason = json.loads(await self._parts.cache.get("verdict", key_of(provider.identity, case.key), produce, trace.deadline))
        return [TextHit("", reason, YES if right else NO)]
