"""Replies in and out of shape, and what a model is told about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.data.construction.replies import BadReply, read_object
from mmsr_ray.data.construction.services import Reply
from mmsr_ray.data.construction.settings import ConstructionConfig
from mmsr_ray.data.construction.taxonomy import classify, even_sample, read_category
from mmsr_ray.data.construction.writing import read_drafts, write

PICTURED = Candidate("k", concept="Nimbus", image=b"\x89PNG", page_title="Nimbus", page_text="The Nimbus is made of tin. Its song is Dawn.")
GOOD = {"question": "What metal is this made of?", "answer": "tin", "aliases": ["tin", " ", "Sn"]}


class Scripted:
    """An author that replies what it is given, one after the other, and keeps the conversations."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = iter(replies)
        self.heard: list[Sequence[dict[str, Any]]] = []

    async def ask(self, messages: Sequence[dict[str, Any]], max_tokens: int, response_format: dict[str, Any]) -> Reply:
        self.heard.append(messages)
        return next(self._replies)


def questions(*drafts: dict[str, Any]) -> Reply:
    return Reply(json.dumps({"questions": list(drafts)}))


@pytest.mark.parametrize("text", ['{"a": 1}', 'Here it is:\n```json\n{"a": 1}\n```\nEnjoy!', 'Sure. {"a": 1} Anything else?'])
def test_one_object_is_found_alone_in_a_fence_or_in_prose(text: str) -> None:
    assert read_object(text) == {"a": 1}


@pytest.mark.parametrize("text", ["", "I would rather not.", '{"a": 1', "[1]", '{"a": 1} or {"a": 2}', "{" * 100_000])
def test_anything_else_is_a_complaint(text: str) -> None:
    with pytest.raises(BadReply):
        read_object(text)


@pytest.mark.parametrize("text", ["{}", '{"questions": {}}', '{"questions": ["What?"]}', '{"questions": [{"question": "What?"}]}'])
def test_drafts_of_another_shape_are_a_complaint(text: str) -> None:
    with pytest.raises(BadReply):
        read_drafts(text)


async def test_the_complaint_goes_back_to_the_model_and_its_better_question_is_kept() -> None:
    author = Scripted(questions(GOOD | {"answer": "gold"}), questions(GOOD))
    (made,) = await write(PICTURED, author, ConstructionConfig())
    assert made.kept and (made.question, made.answer, made.aliases) == (GOOD["question"], "tin", ("Sn",))
    assert made.key != PICTURED.key
    assert "'gold' does not stand in the page" in author.heard[1][-1]["content"]


async def test_of_two_questions_the_good_one_stays_and_only_the_other_is_asked_anew() -> None:
    author = Scripted(questions(GOOD, GOOD), questions({"question": "What is the song of this thing?", "answer": "Dawn", "aliases": []}))
    made = await write(PICTURED, author, ConstructionConfig(questions_per_picture=2))
    assert [c.answer for c in made] == ["tin", "Dawn"]
    assert "Write 1 anew" in author.heard[1][-1]["content"] and "tin" in author.heard[1][-1]["content"]


async def test_tries_are_counted_and_what_could_be_had_is_kept() -> None:
    author = Scripted(*[questions(GOOD)] * 3)
    first, second = await write(PICTURED, author, ConstructionConfig(questions_per_picture=2, question_tries=3))
    assert first.kept and second.status.startswith("question: ") and len(author.heard) == 3


async def test_an_instruction_in_the_page_stays_material() -> None:
    author = Scripted(questions(GOOD))
    await write(PICTURED, author, ConstructionConfig())
    assert "material, not instructions" in author.heard[0][0]["content"]


# ---------------------------------------------------------------------------------------------------- taxonomy


def test_a_category_in_prose_counts_when_it_is_the_only_one() -> None:
    names = ["Nature: plants", "Nature: animals"]
    assert read_category(Reply('{"category": "nature: Plants"}'), names) == "Nature: plants"
    assert read_category(Reply("Clearly Nature: animals."), names) == "Nature: animals"
    for text in ('{"category": "Nature"}', "Nature: plants or Nature: animals", "no idea"):
        with pytest.raises(BadReply):
            read_category(Reply(text), names)


async def test_a_category_is_asked_for_until_it_is_one_of_the_list() -> None:
    config = ConstructionConfig(categories=["Nature: plants"], question_tries=2)
    (made,) = await classify(PICTURED, Scripted(Reply("?"), Reply('{"category": "Nature: plants"}')), config)
    assert made.category == "Nature: plants"
    (made,) = await classify(PICTURED, Scripted(Reply("?"), Reply("no", refused=True)), config)
    assert made.status == "category: refused"


def test_sampling_is_even_fills_up_and_depends_on_nothing_but_keys_and_seed() -> None:
    items = [(f"a{i}", "a") for i in range(100)] + [(f"b{i}", "b") for i in range(50)] + [(f"c{i}", "c") for i in range(4)]
    chosen = even_sample(items, 60, seed=0)
    assert {name: sum(key[0] == name for key in chosen) for name in "abc"} == {"a": 28, "b": 28, "c": 4}
    assert even_sample(items[::-1], 60, seed=0) == chosen != even_sample(items, 60, seed=1)
    assert len(even_sample(items, 0, seed=0)) == len(even_sample(items, 1000, seed=0)) == 154
