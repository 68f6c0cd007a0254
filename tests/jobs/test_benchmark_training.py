"""The training benchmark's own parts: what is said, on which side, and what counts as the same work."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoProcessor

from jobs.benchmark_script import TURN_TOKENS, ScriptError, answer, right, rollout
from jobs.benchmark_training import Side, rows_of, tokens_of
from mmsr_ray.agent.grammar import format_ok, parse_turn
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.tokens import Codec, Transcript
from mmsr_ray.atlas.prepare import world_of
from mmsr_ray.config import AtlasConfig
from mmsr_ray.types import Answer, Generation, TextSearch


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> Codec:
    return Codec.load(tiny_model, min_pixels=784, max_pixels=3136, thumbnail_max_pixels=784)


def test_every_turn_has_its_tokens_and_is_well_formed(codec: Codec) -> None:
    golds = {sample.answers for sample in world_of(AtlasConfig()).samples("train", 60)}
    for number, gold in enumerate(golds):
        turns = rollout(codec.encode_turn, number, gold)
        assert [len(ids) for ids in turns] == [TURN_TOKENS, TURN_TOKENS]
        texts = [codec.decode_turn(ids) for ids in turns]
        searched, answered = parse_turn(texts[0]), parse_turn(texts[1])
        assert searched == TextSearch(f"What is {number:06d}") and isinstance(answered, Answer)
        assert format_ok(texts, ["text,answer"])
        assert right(texts[1], gold) == bool(number % 2)


def test_what_does_not_fit_into_a_turn_is_an_error(codec: Codec) -> None:
    with pytest.raises(ScriptError, match="cannot be made a turn"):
        answer(codec.encode_turn, "Anna Boris " * TURN_TOKENS)


with_trl = pytest.mark.skipif(find_spec("trl") is None, reason="the extra `bench` is not installed")


@with_trl
def test_trl_reads_our_grammar_and_writes_our_messages(codec: Codec, tiny_model: Path) -> None:
    from trl.chat_template_utils import (  # type: ignore[import-not-found]
        is_chat_template_prefix_preserving,
        parse_response,
        supports_tool_calling,
    )

    from jobs.benchmark_trl_training import RESPONSE, TEMPLATE, row

    processor: Any = AutoProcessor.from_pretrained(tiny_model)
    processor.chat_template = processor.tokenizer.chat_template = TEMPLATE
    tokenizer: Any = processor.tokenizer
    tokenizer.response_template = RESPONSE
    assert supports_tool_calling(processor) and is_chat_template_prefix_preserving(processor)

    (sample,) = world_of(AtlasConfig()).samples("train", 1)
    prompts, ours = PromptSet.load("brief"), Transcript(codec)
    ours.add_user(ours.encode_user(prompts.round_1(sample.question, codec.user_picture(sample.image))))
    asked = row(sample, prompts)
    message = [{"role": "user", "content": [asked["prompt"][0]["content"][0], {"type": "image"}, asked["prompt"][0]["content"][2]]}]
    rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert tokenizer.encode(rendered, add_special_tokens=False) == ours.compact_ids()

    said = rollout(codec.encode_turn, 7, sample.answers)
    parsed = parse_response(tokenizer, said[0], prefix=ours.compact_ids())
    assert parsed["tool_calls"] == [
        {"type": "function", "function": {"name": "search_web_async", "arguments": {"query": "What is 000007"}}}
    ]
    assert right(parse_response(tokenizer, said[1], prefix=ours.compact_ids())["content"], sample.answers)

    before = len(ours.compact_ids()) + TURN_TOKENS
    ours.add_generation(Generation(said[0], [-1.0] * TURN_TOKENS, [0] * TURN_TOKENS, stopped=True))
    summary = "Summary: the tower was painted for the 59th time in 1959."
    ours.add_user(ours.encode_user(prompts.text_observation(sample.question, prompts.text_results([("u", "t", summary)]))))
    told = tokenizer.apply_chat_template(
        [{"role": "tool", "name": "search_web_async", "content": summary}], tokenize=False, add_generation_prompt=True
    )
    suffix = tokenizer.encode(f"\n{told}", add_special_tokens=False)  # after the end of the turn
    assert suffix == ours.compact_ids()[before:]


@with_trl
def test_trl_gets_the_threads_that_serve_it_best(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs import benchmark_trl_training

    clock, threads, latencies = [0.0], [0], list[float]()
    monkeypatch.setattr(benchmark_trl_training.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(benchmark_trl_training.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(benchmark_trl_training.torch, "set_num_threads", lambda n: threads.__setitem__(0, n))
    monkeypatch.setattr(benchmark_trl_training, "set_latency", latencies.append)
    watch = benchmark_trl_training.Watch([0.2, 1.0], rounds=2, rollouts=32)
    watch.on_train_begin()
    for step in range(1, watch.steps + 1):
        warm = 0.0 if latencies[-1] or step in (2, 3, 5, 6) else 50.0  # the first with so many threads
        clock[0] += warm + 10.0 / threads[0] + latencies[-1]
        watch.on_step_end(None, SimpleNamespace(global_step=step), None)
    assert latencies == [0.0] * 6 + [0.2] * 2 + [1.0]  # 32 calls of a second in a row are long enough
    assert watch.threads == 2
    assert watch.seconds == {0.0: [5.0, 5.0], 0.2: [pytest.approx(5.2)] * 2, 1.0: [pytest.approx(6.0)]}


def record(**other: Any) -> dict[str, Any]:
    whole = {"step": 1, "trajectories": 8, "searches_text": 1.0, "tool_failures": 0, "infra_errors": 0, "accuracy": 0.5}
    return whole | {"sampled_tokens": 16 * TURN_TOKENS, "length_mean": 100.0} | other


def test_a_step_that_went_wrong_is_no_measurement() -> None:
    assert tokens_of([record(), record(length_mean=104.0)], rollouts=8) == 102.0
    for broken in ({"trajectories": 7}, {"searches_text": 0.9}, {"infra_errors": 1}, {"sampled_tokens": 16 * TURN_TOKENS - 1}):
        with pytest.raises(RuntimeError, match=f"step 1 of ours went wrong: {{'{next(iter(broken))}'"):
            tokens_of([record(**broken)], rollouts=8)


def test_rows_name_their_load_and_refuse_unequal_work() -> None:
    ours, theirs = {32: Side({0.0: 1.0, 1.0: 2.0}, 100.0)}, {32: Side({0.0: 8.0, 1.0: 40.0}, 101.0)}
    instant, slow = rows_of(ours, theirs)
    assert instant["name"] == "GRPO step against TRL, 32 rollouts, instant tools" and instant["ratio"] == 0.125
    assert slow["name"] == "GRPO step against TRL, 32 rollouts, 1 s tools" and slow["ratio"] == 0.05
    with pytest.raises(RuntimeError, match="not the same work"):
        rows_of(ours, {32: Side({0.0: 8.0, 1.0: 40.0}, 110.0)})
