"""Who watches requests: the measures and the traces, behind one call.

Promise: what watches a stream changes nothing about it, and is closed exactly once, however the stream ends.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from opentelemetry.trace import Tracer

from mmsr_ray.serving.errors import Refused
from mmsr_ray.serving.events import Event
from mmsr_ray.serving.measures import Meter, Take
from mmsr_ray.serving.tracing import Spans, parent_of


class Observer(Protocol):
    """Of one request."""

    def on(self, event: Event) -> None: ...

    def refuse(self, code: str) -> None:
        """It was refused with a code of `errors.ERRORS`."""
        ...

    def close(self) -> None: ...


class All:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def on(self, event: Event) -> None:
        for observer in self._observers:
            observer.on(event)

    def refuse(self, code: str) -> None:
        for observer in self._observers:
            observer.refuse(code)

    def close(self) -> None:
        for observer in self._observers:
            observer.close()


class Observers:
    """Of one process: an observer for each request that comes in."""

    def __init__(self, take: Take, tracer: Tracer) -> None:
        self._take, self._tracer = take, tracer

    def request(self, workflow: str, headers: Mapping[str, str]) -> Observer:
        """`headers` in lower case: they may name the caller's trace."""
        return All([Meter(workflow, self._take), Spans(self._tracer, workflow, parent_of(headers))])


async def observed(events: AsyncGenerator[Event, None], observer: Observer) -> AsyncGenerator[Event, None]:
    """The same events, seen on their way; `observer` is closed with the stream. Raises what `events` raises, such as Refused."""
    try:
        async for event in events:
            observer.on(event)
            yield event
    except Refused as error:
        observer.refuse(error.code)
        raise
    finally:
        await events.aclose()
        observer.close()
