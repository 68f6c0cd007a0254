"""Fuzzing of a running service by the OpenAPI document that it serves."""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from tests.agent.scripted import png

PICTURE = "data:image/png;base64," + base64.b64encode(png(56, 56)).decode()
USER = {"role": "user", "content": [{"type": "text", "text": "Who?"}, {"type": "image_url", "image_url": {"url": PICTURE}}]}
NO_PICTURES = ["data:image/png;base64,AAAA", "data:image/png,x", "http://127.0.0.1:9/x.png", "https://[::1]/", "ftp://x/y", "x"]
schemathesis.openapi.format("uri", st.one_of(st.just(PICTURE), st.sampled_from(NO_PICTURES), st.text(max_size=20)))

ALL_HEALTH: Any = list(HealthCheck)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def fuzz(url: str, examples: int) -> dict[str, Counter[int]]:
    """Statuses of every operation. Raises where an answer is a server error or not as the document says."""
    found: list[Any] = [result.ok() for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()]  # type: ignore[union-attr]
    return {operation.label: _fuzz(operation, examples) for operation in found}


def _fuzz(operation: Any, examples: int) -> Counter[int]:
    statuses: Counter[int] = Counter()

    @seed(0)
    @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=ALL_HEALTH)
    @given(case=operation.as_strategy())
    def ask(case: schemathesis.Case) -> None:
        messages = case.body.get("messages") if isinstance(case.body, dict) else None
        if isinstance(messages, list) and statuses.total() % 2:
            messages.append(USER)  # chance alone hardly ever asks a whole question
        reply = case.call(timeout=60)
        statuses[reply.status_code] += 1
        case.validate_response(reply, checks=CHECKS)

    ask()
    return statuses
