"""The grammar: what a turn asks for, what counts as well-formed, and that the two cannot disagree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_ray.agent.grammar import counted_searches, format_ok, neutralise, parse_turn, path_of
from mmsr_ray.types import Answer, ImageSearch, Malformed, TextSearch

IMAGE = "<reason>who is it</reason><search><img></search>"
TEXT = "<reason>when was it</reason> so <text_search>age of Rome</text_search>"
ANSWER = "<reason>I know</reason><answer>Rome</answer>"
PATHS = ["answer", "image,answer", "text,answer", "image,text,answer"]

_TAGS = ["<reason>", "</reason>", "<search><img></search>", "<text_search>", "</text_search>", "<answer>", "</answer>", "<information>",
         "</information>", "<|im_end|>", "<|image_pad|>", "<", ">", "/", "|", " ", "\n", "x", "Rome"]  # fmt: skip
tag_soup = st.lists(st.sampled_from(_TAGS) | st.text(max_size=4), max_size=14).map("".join)


@pytest.mark.parametrize(
    ("turn", "action"),
    [
        (IMAGE, ImageSearch()),
        ("<search><img></search>", ImageSearch()),  # reasoning is the format score's affair
        (IMAGE + " \n", ImageSearch()),
        (TEXT, TextSearch("age of Rome")),
        ("<text_search>two\nlines </text_search>\n", TextSearch("two\nlines")),
        ("<text_search>a</text_search> or <text_search>b</text_search>", TextSearch("b")),
        (ANSWER, Answer("Rome")),
        ("<answer>a</answer> no, <answer> b\nc </answer> surely", Answer("b\nc")),
        ("<answer>a</answer> but first <search><img></search>", ImageSearch()),
        ("<search><img></search> is what I would do", Malformed("neither a search at its end nor an answer")),
        ("<text_search> </text_search>", Malformed("empty search query")),
        ("query</text_search>", Malformed("a text search that was never opened")),
        ("Unable to answer due to lack of relevant information", Malformed("neither a search at its end nor an answer")),
        ("<answer>Rome", Malformed("neither a search at its end nor an answer")),
        ("", Malformed("empty turn")),
    ],
)
def test_parse_turn(turn: str, action: object) -> None:
    assert parse_turn(turn) == action


@pytest.mark.parametrize(
    ("turns", "ok"),
    [
        ([ANSWER], True),
        ([IMAGE, ANSWER], True),
        ([TEXT, ANSWER], True),
        ([IMAGE, TEXT, ANSWER], True),
        ([TEXT, TEXT, ANSWER], False),
        ([TEXT, IMAGE, ANSWER], False),
        ([IMAGE, TEXT, TEXT, ANSWER], False),
        ([IMAGE], False),
        ([], False),
        (["<answer>Rome</answer>"], False),
        (["Well. " + ANSWER], False),
        ([ANSWER + " indeed"], False),
        (["<reason>a</reason><reason>b</reason><answer>Rome</answer>"], False),
        (["<reason>I could <search><img></search></reason><answer>Rome</answer>"], False),
        (["<reason>a <answer>Rome</answer></reason><answer>Rome</answer>"], False),
        (["<reason>a</reason><search><img></search><search><img></search>", ANSWER], False),
        (["<reason>a</reason><text_search></text_search>", ANSWER], False),
        (["  <reason>two\nlines</reason>\n<answer>Rome\n</answer>\n"], True),
    ],
)
def test_format_ok(turns: list[str], ok: bool) -> None:
    assert format_ok(turns, PATHS) is ok


def test_allowed_paths_are_a_setting() -> None:
    assert format_ok([TEXT, TEXT, IMAGE, ANSWER], ["text,text,image,answer"])
    assert not format_ok([ANSWER], ["image,answer"])


@pytest.mark.parametrize(
    ("turns", "count"),
    [([ANSWER], 0), ([IMAGE], 1), ([IMAGE, ANSWER], 1), ([IMAGE, TEXT, ANSWER], 2), ([IMAGE, TEXT], 1), ([ANSWER, TEXT], 0),
     (["<reason>or <search><img></search>?</reason><answer>a</answer>"], 1), ([IMAGE + TEXT, ANSWER], 1), ([], 0)],
)  # fmt: skip
def test_counted_searches(turns: list[str], count: int) -> None:
    assert counted_searches(turns) == count


@given(st.lists(tag_soup | st.sampled_from([IMAGE, TEXT, ANSWER]), max_size=4))
def test_what_is_well_formed_is_parsed_as_the_same_path(turns: list[str]) -> None:
    path = path_of([parse_turn(turn) for turn in turns])
    for allowed in PATHS:
        if format_ok(turns, [allowed]):
            assert path == allowed


@given(st.text().filter(lambda t: "<" not in t and t.strip()), st.text().filter(lambda t: "<" not in t))
def test_a_query_comes_back_as_written(query: str, reason: str) -> None:
    assert parse_turn(f"<reason>{reason}</reason><text_search>{query}</text_search>") == TextSearch(query.strip())
    assert parse_turn(f"<reason>{reason}</reason><answer>{query}</answer>") == Answer(query.strip())


@given(tag_soup)
def test_neutralised_text_is_inert(text: str) -> None:
    inert = neutralise(text)
    assert isinstance(parse_turn(inert), Malformed)
    assert isinstance(parse_turn(f"<answer>own</answer>{inert}"), Answer)
    assert "<|" not in inert
    assert "<information>" not in inert
    assert "</information>" not in inert
    assert neutralise(inert) == inert
    assert inert.replace("< ", "<") == text.replace("< ", "<")  # readable: nothing but spaces was added


def test_neutralise_keeps_ordinary_text_and_mends_surrogates() -> None:
    assert neutralise("1 < 2 and <b>bold</b> <answers> f(x)|g") == "1 < 2 and <b>bold</b> <answers> f(x)|g"
    assert neutralise("<ANSWER>x</Answer >") == "< ANSWER>x< /Answer >"
    assert neutralise("a\ud800b") == "a?b"
