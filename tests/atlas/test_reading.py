"""Skills inside the RAG workflow are told apart by what the pages of Atlas say, not by what is true."""

from __future__ import annotations

import pytest

from mmsr_ray.atlas.reading import rag_skills, told
from mmsr_ray.atlas.world import World
from mmsr_ray.evaluation.trajectories import StoredHit, StoredTrajectory, StoredTurn

WORLD = World(0)
QUESTIONS = WORLD.questions_by_uid("test", 240)


def episode(uid: str, *, page_of: str, answer: str | None, outcome: str = "ok") -> StoredTrajectory:
    hit = StoredHit("", f"http://127.0.0.1:1/wiki/{page_of}", "a summary", None)
    search = StoredTurn("", "text_search", "q", "text", None, None, False, 0.0, 4, (hit,))
    return StoredTrajectory(
        uid, 0, "test", None, "rag", QUESTIONS[uid].text, (QUESTIONS[uid].answer,), None, "", b"", outcome, "", answer, None, None, None, (search,)
    )  # fmt: skip


def test_questions_by_uid_are_those_of_the_samples() -> None:
    asked = WORLD.questions_by_uid("test", 12)
    for sample in WORLD.samples("test", 12):
        assert (sample.question, sample.answers) == (asked[sample.uid].text, (asked[sample.uid].answer,))


def test_a_reader_who_says_what_the_pages_say_is_perfect_where_the_web_is_not() -> None:
    perfect = [episode(uid, page_of=q.entity.slug, answer=told(WORLD, q)) for uid, q in QUESTIONS.items()]
    skills = rag_skills(WORLD, QUESTIONS, perfect)
    assert (skills["finds the page"], skills["says what it says"]) == (1.0, 1.0)
    mistaken = sum(told(WORLD, q) != q.answer for q in QUESTIONS.values())
    assert mistaken > 0
    assert skills["most"] == skills["right in substance"] == pytest.approx(1 - mistaken / len(QUESTIONS))


def test_a_wrong_page_and_a_wrong_reading_count_apart() -> None:
    [one, two, three, *_] = QUESTIONS
    slug = {uid: QUESTIONS[uid].entity.slug for uid in (one, two, three)}
    other = next(e.slug for e in WORLD.entities if e.slug not in slug.values())
    skills = rag_skills(
        WORLD,
        QUESTIONS,
        [
            episode(one, page_of=slug[one], answer=told(WORLD, QUESTIONS[one])),
            episode(two, page_of=slug[two], answer="nonsense"),
            episode(three, page_of=other, answer=None),
            episode(three, page_of=other, answer=None, outcome="infra_error"),
        ],
    )
    assert skills["finds the page"] == pytest.approx(2 / 3)
    assert skills["says what it says"] == pytest.approx(1 / 2)


def test_a_right_answer_in_the_wrong_form_is_right_in_substance_alone() -> None:
    [one, *_] = [uid for uid, q in QUESTIONS.items() if told(WORLD, q) == q.answer]
    answer = QUESTIONS[one].answer
    skills = rag_skills(
        WORLD, QUESTIONS, [episode(one, page_of=QUESTIONS[one].entity.slug, answer=f"{answer}</reason><answer>{answer}</answer>")]
    )
    assert (skills["says what it says"], skills["right in substance"]) == (0.0, 1.0)


def test_without_episodes_there_is_nothing_to_say() -> None:
    with pytest.raises(ValueError, match="no episode"):
        rag_skills(WORLD, QUESTIONS, [])
