from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmsr_ray.config import DataConfig
from mmsr_ray.serving.errors import ERRORS, Refused
from mmsr_ray.serving.requests import read_agent, read_chat, read_json

MODELS = ["atlas", "other"]
LIMITS = DataConfig(train="", test="", max_image_bytes=100, max_question_chars=20)
URL = "data:image/png;base64," + base64.b64encode(b"a picture").decode()


def picture(url: Any = URL) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"model": "atlas", "messages": list(messages), **more}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)}


def test_the_last_user_message_is_the_question_and_the_latest_picture_goes_with_it() -> None:
    earlier = user(words("What?"), picture("https://example.org/a.png"), picture())
    asked = read_chat(
        chat({"role": "system", "content": "x"}, earlier, {"role": "assistant", "content": "y"}, user("And who?")), "atlas", LIMITS
    )
    assert (asked.question, asked.image, asked.image_url, asked.workflow) == ("And who?", b"a picture", None, "on_demand")
    assert (asked.temperature, asked.max_tokens, asked.stream) == (0.0, None, False)


def test_what_was_said_goes_before_the_question_as_far_as_there_is_room() -> None:
    turns = [user(words("Who is it?"), picture()), {"role": "assistant", "content": "Aldo"}, user("And where?")]
    limits = DataConfig(train="", test="", max_image_bytes=100, max_question_chars=200)
    asked = read_chat(chat({"role": "system", "content": "Be brief"}, *turns), MODELS, limits, 100)
    assert (asked.question, asked.image) == ("Earlier:\nUser: Who is it?\nAssistant: Aldo\n\nAnd where?", b"a picture")
    assert read_chat(chat(*turns), MODELS, limits, 30).question == "Earlier:\nAssistant: Aldo\n\nAnd where?"
    assert read_chat(chat(*turns), MODELS, limits, 20).question == "And where?"
    assert read_chat(chat(*turns), "atlas", LIMITS, 100).question == "And where?"  # no room in the question
    begun = read_chat(chat(*turns, {"role": "assistant", "content": "In"}), MODELS, limits)
    assert begun.question == "And where?"


def test_what_clients_send_without_meaning_it_is_let_in() -> None:
    idle = {"n": 1, "top_p": 1.0, "stop": None, "tools": [], "response_format": {"type": "text"}, "presence_penalty": 0, "user": "x"}
    assert read_chat(chat(GOOD, **idle), MODELS, LIMITS).question == "Who?"


def test_settings_of_a_completion() -> None:
    more = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 1, "max_completion_tokens": 5, "seed": 3}
    asked = read_chat(chat(user(words("Who?"), picture("https://e.org/x")), **more) | {"model": "other:rag"}, MODELS, LIMITS)
    assert (asked.model, asked.called) == ("other", "other:rag")
    assert (asked.workflow, asked.temperature, asked.max_tokens, asked.seed) == ("rag", 1.0, 5, 3)
    assert (asked.image, asked.image_url, asked.stream, asked.include_usage) == (b"", "https://e.org/x", True, True)


GOOD = user(words("Who?"), picture())


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (chat(GOOD) | {"model": "gpt"}, "model_not_found", "atlas:direct"),
        (chat(GOOD) | {"model": "atlas:on_fire"}, "model_not_found", "choose one of"),
        (chat(GOOD) | {"model": 3}, "model_not_found", "choose one of"),
        (chat(user("Who?")), "bad_request", "no picture"),
        (chat(user(words(" "), picture())), "bad_request", "no question"),
        (chat(user(words("w" * 21), picture())), "bad_request", "at most 20"),
        (chat(user(words("Who?"), picture("file:///etc/passwd"))), "bad_request", "http"),
        (chat(user(words("Who?"), picture(None))), "bad_request", "data URL"),
        (chat(user(words("Who?"), picture("data:image/png;base64,???"))), "bad_request", "base64"),
        (chat(user(words("Who?"), picture("data:text/html,x"))), "bad_request", "base64"),
        (chat(user(words("Who?"), picture(URL + "A" * 200))), "request_too_large", "100 bytes"),
        (chat(user(words("Who?"), {"type": "input_audio"})), "bad_request", "part"),
        (chat(), "bad_request", "user message"),
        ({"model": "atlas", "messages": "x"}, "bad_request", "list"),
        (chat(GOOD, n=2), "bad_request", "n must"),
        (chat(GOOD, n=True), "bad_request", "n must"),
        (chat(GOOD, tools=[{}]), "bad_request", "tools"),
        (chat(GOOD, stop=["."]), "bad_request", "stop"),
        (chat(GOOD, top_p=0.5), "bad_request", "top_p must be 1"),
        (chat(GOOD, response_format={"type": "json_object"}), "bad_request", "response_format"),
        (chat(GOOD, temperature="hot"), "bad_request", "temperature"),
        (chat(GOOD, temperature=float("nan")), "bad_request", "temperature"),
        (chat(GOOD, max_tokens=0), "bad_request", "max_tokens"),
        (chat(GOOD, seed=True), "bad_request", "seed"),
    ],
)  # fmt: skip
def test_what_is_refused(body: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(Refused, match=said) as refused:
        read_chat(body, MODELS, LIMITS)
    assert refused.value.code == code


def test_a_question_to_the_agent() -> None:
    asked = read_agent({"question": "Who?", "image": URL, "workflow": "direct"}, MODELS, LIMITS)
    assert (asked.question, asked.image, asked.workflow, asked.model) == ("Who?", b"a picture", "direct", "atlas")
    assert read_agent({"question": "Who?", "image": URL, "model": "other"}, MODELS, LIMITS).model == "other"
    for model in ("other:rag", ["other"], None):
        with pytest.raises(Refused, match="atlas:direct, atlas:rag, other, other:direct, other:rag"):
            read_agent({"question": "Who?", "image": URL, "model": model}, MODELS, LIMITS)
    for workflow in ("ragged", ["rag"], None):
        with pytest.raises(Refused, match="workflow"):
            read_agent({"question": "Who?", "image": URL, "workflow": workflow}, MODELS, LIMITS)


def test_bodies_that_are_no_objects() -> None:
    for body in (b"", b"[]", b"\xff", b"[" * 100_000, b'{"question": "\\ud800"}'):
        with pytest.raises(Refused):
            read_json(body)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["user", "text", "image_url", URL]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "image_url", "url"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["model", "messages", "n", "seed", "question", "image", "workflow", "stream_options"]), anything))
def test_whatever_comes_is_read_or_refused(body: dict[str, Any]) -> None:
    for read in (lambda: read_agent(body, MODELS, LIMITS), lambda: read_chat(body | {"model": "atlas"}, MODELS, LIMITS)):
        try:
            assert read().question.strip()
        except Refused as refused:
            assert ERRORS[refused.code][0] in (400, 404, 413)  # noqa: PT017
