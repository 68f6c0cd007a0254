"""Measures and traces of whole streams, from their events."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracer, StatusCode

from mmsr_ray.serving.errors import Refused
from mmsr_ray.serving.events import Answer, Event, Failed, Finished, Hit, Reason, Results, Search, Started
from mmsr_ray.serving.measures import LEFT, UNKNOWN, Account, Exported, Meter
from mmsr_ray.serving.observers import Observers, observed
from mmsr_ray.serving.tracing import Spans, open_tracer, parent_of
from mmsr_ray.types import ToolKind

SECRET = "what a user asked"
HIT = Hit(SECRET, f"https://a.example/{SECRET}", summary=SECRET)
END = Finished("ok", 300, 20, 2, 5.0, 0.004, 7)
ON_DEMAND: tuple[Event, ...] = (
    Started("ask-1", "on_demand"),
    Reason(SECRET),
    Search(ToolKind.IMAGE, ""),
    Results(ToolKind.IMAGE, (), "no_results"),
    Reason(SECRET),
    Search(ToolKind.TEXT, SECRET),
    Results(ToolKind.TEXT, (HIT, HIT)),
    Reason(SECRET),
    Answer(SECRET),
    END,
)
RAG: tuple[Event, ...] = (
    Started("ask-2", "rag"),
    Search(ToolKind.IMAGE, ""),
    Results(ToolKind.IMAGE, (HIT,)),
    Search(ToolKind.TEXT, SECRET),
    Results(ToolKind.TEXT, (HIT,)),
    Answer(SECRET),
    END,
)


class Clock:
    """One more each time it is asked."""

    def __init__(self) -> None:
        self.now = -1

    def __call__(self) -> int:
        self.now += 1
        return self.now


def measured(workflow: str, events: Sequence[Event]) -> Account:
    taken: list[Account] = []
    meter = Meter("first", workflow, taken.append, Clock())
    for event in events:
        meter.on(event)
    meter.close()
    meter.close()
    assert len(taken) == 1
    return taken[0]


def traced(workflow: str, events: Sequence[Event], parent: str = "") -> list[ReadableSpan]:
    """In the order in which they began."""
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    spans = Spans(provider.get_tracer("test"), workflow, parent_of({"traceparent": parent}), Clock())
    for event in events:
        spans.on(event)
    spans.close()
    spans.close()
    return sorted(memory.get_finished_spans(), key=lambda span: span.start_time or 0)


def test_a_request_is_counted_by_what_it_came_to() -> None:
    account = measured("on_demand", ON_DEMAND)
    assert (account.model, account.workflow, account.outcome) == ("first", "on_demand", "ok")
    assert (account.queued, account.first, account.seconds) == (1, 2, 11)
    assert (account.prompt_tokens, account.completion_tokens, account.cost_usd) == (300, 20, 0.004)
    assert account.searches == {(ToolKind.IMAGE, "no_results"): 1, (ToolKind.TEXT, "ok"): 1}


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        ((), LEFT),
        (ON_DEMAND[:5], LEFT),
        ((Failed("bad_input", "the picture is empty"),), "bad_input"),
        ((*ON_DEMAND[:3], Failed("timeout", "no answer within 120 s")), "timeout"),
        ((*ON_DEMAND[:3], Failed("unavailable", "later"), Finished("infra_error", 9, 1, 1, 1.0, 0.0, 0)), "unavailable"),
    ],
)
def test_a_request_that_ends_early_is_counted_too(events: Sequence[Event], outcome: str) -> None:
    assert measured("direct", events).outcome == outcome


def test_a_span_a_turn_and_a_search_within_the_request() -> None:
    spans = traced("on_demand", ON_DEMAND)
    assert [span.name for span in spans] == ["request", "turn", "search image", "turn", "search text", "turn"]
    request, *inner = spans
    assert request.context is not None and request.attributes is not None
    assert all(span.parent is not None and span.parent.span_id == request.context.span_id for span in inner)
    assert all(before.end_time <= after.start_time for before, after in itertools.pairwise(inner))  # type: ignore[operator]
    assert request.attributes["gen_ai.usage.output_tokens"] == 20 and request.attributes["mmsr.weight_version"] == 7
    assert [span.status.status_code for span in spans] == [StatusCode.UNSET] * 6  # nothing found is no error
    assert SECRET not in "".join(span.to_json() for span in spans)


def test_always_searching_has_its_first_turn_after_its_first_search() -> None:
    assert [span.name for span in traced("rag", RAG)] == ["request", "search image", "turn", "search text", "turn"]


def test_what_breaks_or_is_left_ends_its_spans() -> None:
    late = (*ON_DEMAND[:3], Failed("timeout", "late"))
    for events, begun in (((), 1), (ON_DEMAND[:1], 2), (ON_DEMAND[:3], 3), (late, 3)):
        spans = traced("on_demand", events)
        assert [span.name for span in spans] == ["request", "turn", "search image"][:begun]
        assert all(span.end_time is not None for span in spans)
    assert traced("on_demand", late)[0].status.status_code is StatusCode.ERROR
    lost = traced("on_demand", (*ON_DEMAND[:3], Results(ToolKind.IMAGE, (), "timeout")))
    assert lost[2].status.status_code is StatusCode.ERROR and lost[2].attributes == {
        "mmsr.search": "image",
        "mmsr.hits": 0,
        "error.type": "timeout",
    }


def test_the_caller_s_trace_goes_on() -> None:
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    request = traced("direct", (), f"00-{trace}-{span}-01")[0]
    assert request.context is not None and request.parent is not None
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (trace, span)


def test_spans_leave_only_where_an_endpoint_is_named() -> None:
    assert isinstance(open_tracer({}), NoOpTracer)
    assert not isinstance(open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}), NoOpTracer)


async def refused() -> AsyncGenerator[Event, None]:
    raise Refused("overloaded", "too many questions", retry_after=2)
    yield ON_DEMAND[0]


async def test_a_stream_is_passed_on_unchanged_and_closed_with_its_reader() -> None:
    async def events() -> AsyncGenerator[Event, None]:
        for event in ON_DEMAND:
            await asyncio.sleep(0)
            yield event

    taken: list[Account] = []
    inside: list[int] = []
    observers = Observers(taken.append, NoOpTracer(), inside.append)
    assert tuple([event async for event in observed(events(), observers.request("first", "on_demand", {}))]) == ON_DEMAND
    stream = observed(events(), observers.request("first", "on_demand", {}))
    assert await anext(stream) == ON_DEMAND[0]
    await stream.aclose()  # the client goes away
    stream = observed(refused(), observers.request("second", "rag", {}))
    with pytest.raises(Refused):
        await anext(stream)
    assert [(account.model, account.outcome) for account in taken] == [("first", "ok"), ("first", LEFT), ("second", "overloaded")]
    assert inside == [1, 0] * 3


def test_what_is_refused_before_it_is_understood_is_counted_and_traced() -> None:
    taken: list[Account] = []
    inside: list[int] = []
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    observers = Observers(taken.append, provider.get_tracer("test"), inside.append)
    with observers.understanding({}):
        pass
    assert taken == [] and inside == []
    with pytest.raises(Refused), observers.understanding({}):
        raise Refused("invalid_api_key", "who are you")
    assert [(account.model, account.workflow, account.outcome) for account in taken] == [(UNKNOWN, UNKNOWN, "invalid_api_key")]
    assert inside == [1, 0]
    assert [span.attributes for span in memory.get_finished_spans()] == [{"mmsr.workflow": UNKNOWN, "error.type": "invalid_api_key"}]


def test_the_exported_measures_take_every_kind_of_account() -> None:
    export = Exported(room=64)  # Ray's metrics refuse a tag that was not declared
    for workflow, events in (("on_demand", ON_DEMAND), ("rag", RAG), ("", ())):
        export(measured(workflow, events))
