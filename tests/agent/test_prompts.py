"""Prompt sets: complete, with the wire shapes of spec §1.4 and §1.5, and no formatting of foreign text."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import mmsr_ray.agent.prompts as package
from mmsr_ray.agent.pieces import Foreign, Own, Piece, SizedPicture
from mmsr_ray.agent.prompts import PromptError, PromptSet, Template
from mmsr_ray.types import Picture

THUMB = SizedPicture(Picture(b"", "sha"), (1, 2, 2))


def shown(pieces: list[Piece]) -> str:
    return "".join("[picture]" if isinstance(piece, SizedPicture) else piece.text for piece in pieces)


def test_wire_shape_of_an_image_observation() -> None:
    prompts = PromptSet.load("standard")
    text = shown(prompts.image_observation("Who?", prompts.image_results([("Title A", THUMB), ("Title B", THUMB)])))
    head, *lines = text.split("\n")
    assert head.startswith("Searched results: <information>[Image Search Results] ")
    assert lines[:4] == ["1. image: [picture]", "title: Title A", "2. image: [picture]", "title: Title B</information>"]
    assert lines[4] == "Original user's question: Who?"
    assert lines[5].startswith("Find in these results")


def test_wire_shape_of_a_text_observation() -> None:
    prompts = PromptSet.load("standard")
    text = shown(prompts.text_observation("Who?", prompts.text_results([("http://a", "A", "Sum A."), ("http://b", "B", "Sum B.")])))
    head, *lines = text.split("\n")
    assert head.startswith("Searched results: <information>[Text Search Results] ")
    assert lines[:3] == ["1. (http://a) Sum A.", "2. (http://b) Sum B.</information>", "Original user's question: Who?"]


def test_no_results_keep_the_wrapper_and_the_followup(prompts: PromptSet) -> None:
    text = shown(prompts.text_observation("Who?", prompts.text_results([])))
    assert "<information>" in text
    assert "</information>" in text
    assert text.endswith(shown(prompts.templates["after_text_search"].fill()))


def test_order_of_the_first_message() -> None:
    text = shown(PromptSet.load("standard").round_1("Who?", THUMB))
    assert text.endswith("[picture] Who?")
    for tag in ("<reason>", "<search><img></search>", "<text_search>", "<information>", "<answer>Titanic</answer>"):
        assert tag in text


def test_foreign_text_is_never_a_template(prompts: PromptSet) -> None:
    pieces = prompts.text_observation("{results} <image>", prompts.text_results([("{title}", "t", "{0} {question} <image>")]))
    assert Foreign("{0} {question} <image>") in pieces
    assert not any(isinstance(piece, SizedPicture) for piece in pieces)


def test_unknown_braces_are_literal() -> None:
    assert Template.parse("a {b} {question}").fill({"question": [Own("q")]}) == [Own("a {b} "), Own("q")]


def test_the_brief_set_is_brief() -> None:
    assert all(len(text.split()) <= 6 for text in PromptSet.load("brief").texts())


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no prompt set 'nowhere'"):
        PromptSet.load("nowhere")
    folder = tmp_path / "own"
    shutil.copytree(Path(package.__file__).parent / "brief", folder)
    (folder / "round_1.txt").write_text("only {question}")
    with pytest.raises(PromptError, match=r"round_1\.txt must hold <image>"):
        PromptSet.load(folder)
    (folder / "round_1.txt").write_text("<image> {question} {title}")
    with pytest.raises(PromptError, match=r"round_1\.txt may not hold \{title\}"):
        PromptSet.load(folder)
    (folder / "round_1.txt").unlink()
    with pytest.raises(PromptError, match=r"lacks round_1\.txt"):
        PromptSet.load(folder)
