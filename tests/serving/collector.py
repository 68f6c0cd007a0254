"""An OTLP collector as the specification has it: traces over HTTP in protobuf, packed or not; what it cannot read it refuses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PROTOBUF = "application/x-protobuf"


@dataclass
class Collector:
    url: str = ""
    spans: list[tuple[str, Span]] = field(default_factory=list)  # service.name, span
    bodies: list[bytes] = field(default_factory=list)

    def of(self, trace: str) -> list[Span]:
        """Of one trace (hex id), in the order in which they began."""
        return sorted((span for _, span in self.spans if span.trace_id.hex() == trace), key=lambda span: span.start_time_unix_nano)

    async def take(self, request: web.Request) -> web.Response:
        if request.content_type != PROTOBUF:
            return web.Response(status=415)
        body = await request.read()  # aiohttp unpacks gzip and deflate
        try:
            asked = ExportTraceServiceRequest.FromString(body)
        except DecodeError:
            return web.Response(status=400)
        self.bodies.append(body)
        for resource in asked.resource_spans:
            service = next((a.value.string_value for a in resource.resource.attributes if a.key == "service.name"), "")
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        return web.Response(body=ExportTraceServiceResponse().SerializeToString(), content_type=PROTOBUF)


def attributes(span: Span) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value") for item in span.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on this machine, in a thread of its own."""
    collector = Collector()
    loop = asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/traces", collector.take)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(timeout=30)
    try:
        yield collector
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=30)
