"""Traces of requests for OpenTelemetry: a span a request, in it a span a model turn and a span a search, from the events alone.

Promise: spans leave the process only where OTEL_EXPORTER_OTLP_ENDPOINT (or the same for traces) is set; every span that was begun is
ended, also when the client goes away. No span holds what a user, a model or the web wrote. Attributes of tokens carry OpenTelemetry's
names for generative models, our own begin with "mmsr.".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NoOpTracer, Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mmsr_ray.serving.events import Answer, Event, Failed, Finished, Reason, Results, Search, Started

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
NAME = "mmsr_ray.serving"
BROKEN = {"infra_error", "internal", "unavailable", "timeout"}  # outcomes and codes that are the service's fault


def open_tracer(environ: Mapping[str, str]) -> Tracer:
    """One that exports over HTTP as OpenTelemetry's own environment variables say, or one that does nothing."""
    if not any(environ.get(name) for name in ENDPOINTS):
        return NoOpTracer()
    provider = TracerProvider(resource=Resource.create({"service.name": environ.get("OTEL_SERVICE_NAME") or "mmsr-ray"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer(NAME)


def parent_of(headers: Mapping[str, str]) -> Context:
    """The caller's trace (W3C traceparent, names in lower case), if it sent one."""
    return TraceContextTextMapPropagator().extract(dict(headers))


class Spans:
    """Of one request, from when it is made; an `observers.Observer`. A turn lasts from what the model was shown to what it asked for."""

    def __init__(self, tracer: Tracer, workflow: str, parent: Context | None = None, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock`: nanoseconds since the epoch."""
        self._tracer, self._workflow, self._clock = tracer, workflow, clock
        self._turns = 0
        self._inner: Span | None = None
        self._request: Span | None = tracer.start_span(
            "request", parent, SpanKind.SERVER, attributes={"mmsr.workflow": workflow}, start_time=clock()
        )
        self._within = set_span_in_context(self._request)

    def on(self, event: Event) -> None:
        if self._request is None:
            return
        match event:
            case Started(id=identity):
                self._request.set_attribute("mmsr.request", identity)
                self._request.add_event("started", timestamp=self._clock())
                if self._workflow != "rag":  # which searches before the model is asked
                    self._turn()
            case Reason():
                pass
            case Search(kind=kind):
                self._end_inner()
                self._begin(f"search {kind}", SpanKind.CLIENT, {"mmsr.search": str(kind)})
            case Results(hits=hits, failure=failure):
                if self._inner is not None:
                    self._inner.set_attribute("mmsr.hits", len(hits))
                    self._blame(self._inner, failure, broken=failure not in ("", "no_results"))
                self._end_inner()
                self._turn()
            case Answer():
                self._end_inner()
            case Failed(code=code):
                self._end_inner()
                self._blame(self._request, code, broken=code in BROKEN)
            case Finished():
                self._end_inner()
                self._books(self._request, event)

    def refuse(self, code: str) -> None:
        """The request was not let in."""
        if self._request is not None:
            self._blame(self._request, code, broken=code in BROKEN)

    def close(self) -> None:
        """The request is over; a span that is still open ends now. More than once is once."""
        if self._request is None:
            return
        self._end_inner()
        self._request.end(self._clock())
        self._request = None

    def _turn(self) -> None:
        self._turns += 1
        self._begin("turn", SpanKind.INTERNAL, {"mmsr.turn": self._turns})

    def _begin(self, name: str, kind: SpanKind, attributes: dict[str, str | int]) -> None:
        self._inner = self._tracer.start_span(name, self._within, kind, attributes=attributes, start_time=self._clock())

    def _end_inner(self) -> None:
        if self._inner is not None:
            self._inner.end(self._clock())
            self._inner = None

    @staticmethod
    def _blame(span: Span, why: str, *, broken: bool) -> None:
        if why:
            span.set_attribute("error.type", why)
        if broken:
            span.set_status(Status(StatusCode.ERROR, why))

    @staticmethod
    def _books(span: Span, event: Finished) -> None:
        span.set_attributes(
            {
                "gen_ai.usage.input_tokens": event.prompt_tokens,
                "gen_ai.usage.output_tokens": event.completion_tokens,
                "mmsr.outcome": event.outcome,
                "mmsr.searches": event.searches,
                "mmsr.cost_usd": event.cost_usd,
                "mmsr.weight_version": event.weight_version,
            }
        )
