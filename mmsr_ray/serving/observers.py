"""Who watches requests: the measures and the traces, behind one call.

Promise: what watches a stream changes nothing about it, and is closed exactly once, however the stream ends.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from opentelemetry.trace import Tracer

from mmsr_ray.serving.errors import Refused
from mmsr_ray.serving.events import Event
from mmsr_ray.serving.measures import UNKNOWN, Meter, Take
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


class Present:
    """`moved` hears 1 when the request comes in and -1, once, when it is over."""

    def __init__(self, moved: Callable[[int], None]) -> None:
        self._moved, self._closed = moved, False
        moved(1)

    def on(self, event: Event) -> None:
        pass

    def refuse(self, code: str) -> None:
        pass

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._moved(-1)


class Observers:
    """Of one process: an observer for each request that comes in."""

    def __init__(self, take: Take, tracer: Tracer, inside: Callable[[int], None] = lambda _: None) -> None:
        """`inside` hears how many requests are observed whenever that changes."""
        self._take, self._tracer, self._inside = take, tracer, inside
        self._count = 0

    def request(self, model: str, workflow: str, headers: Mapping[str, str]) -> Observer:
        """`headers` in lower case: they may name the caller's trace."""
        return All([Present(self._moved), Meter(model, workflow, self._take), Spans(self._tracer, workflow, parent_of(headers))])

    def _moved(self, by: int) -> None:
        self._count += by
        self._inside(self._count)

    @contextmanager
    def understanding(self, headers: Mapping[str, str]) -> Iterator[None]:
        """While it is found out who asks what: a request that is refused meanwhile is one that ended."""
        try:
            yield
        except Refused as error:
            observer = self.request(UNKNOWN, UNKNOWN, headers)
            observer.refuse(error.code)
            observer.close()
            raise


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
