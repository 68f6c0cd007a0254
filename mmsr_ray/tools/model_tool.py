"""A chat service as the policy: a conversation in, its next turn out. Equal requests are sent once and their answer is kept.

A turn travels as a tool result with one text hit whose summary is a packed `Said`, so that it is paid for, limited, cached and
taped as a search is.
"""

from __future__ import annotations

from mmsr_ray.tools.cache import key_of
from mmsr_ray.tools.guard import Trace
from mmsr_ray.tools.parts import Parts
from mmsr_ray.tools.providers.models import Request
from mmsr_ray.types import TextHit


class ModelTool:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def complete(self, request: Request, trace: Trace) -> list[TextHit]:
        """One hit. Raises ProviderError."""
        provider = self._parts.providers.model

        async def produce() -> bytes:
            said = await self._parts.guards["model"].call(trace, lambda: provider.turn(request))
            return said.text.encode()

        packed = await self._parts.cache.get("reply", key_of(provider.identity, request.key), produce, trace.deadline)
        return [TextHit("", packed.decode())]
