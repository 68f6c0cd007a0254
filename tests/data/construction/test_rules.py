"""The rules of a written question."""

from __future__ import annotations

import pytest

from mmsr_ray.data.construction.rules import Draft, faults

CONCEPT = "Eiffel Tower"
PAGE = "The Eiffel Tower in Paris is 330 metres tall. It was designed by Stephen Sauvestre. Its nickname is La dame de fer."


def reasons(question: str, answer: str = "330 metres") -> list[str]:
    return [fault.reason for fault in faults(Draft(question, answer), CONCEPT, PAGE, max_answer_words=4)]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the height of this tower?", "330 metres"),
        ("Who designed this tower?", "Stephen Sauvestre"),
        ("What is the nickname of the tower shown?", "la Dame de Fer"),
        ("Where is this tower?", "Paris"),
    ],
)
def test_good_questions_have_no_fault(question: str, answer: str) -> None:
    assert reasons(question, answer) == []


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("How tall is this tower?", "330 metres", "opening"),
        ("What is its height?", "330 metres", "no picture"),
        ("What is the height of this tower", "330 metres", "not one question"),
        ("What is this? How tall is it?", "330 metres", "not one question"),
        ("What is the height of this Eiffel building?", "330 metres", "names the concept"),
        ("What is the height of this eiffel tower?", "330 metres", "names the concept"),
        ("What is the height of this tower in Paris?", "330 metres", "leaks the page"),
        ("Who designed this tower of 330 metres?", "Stephen Sauvestre", "leaks the page"),
        ("What is this of which it was designed by Stephen?", "La dame de fer", "leaks the page"),
        ("What 330 metres tall thing is this?", "330 metres", "leaks the page"),
        ("What fer is this?", "fer", "gives the answer"),
        ("What is the height of this tower?", "", "no answer"),
        ("What is the height of this tower?", "Unknown", "no answer"),
        ("What is the height of this tower?", "it is 330 metres tall", "long answer"),
        ("What is the height of this tower?", "324 metres", "not in the page"),
        ("What is the height of this tower?", "30 metres", "not in the page"),
    ],
)
def test_each_rule_finds_its_fault(question: str, answer: str, reason: str) -> None:
    assert reason in reasons(question, answer)
