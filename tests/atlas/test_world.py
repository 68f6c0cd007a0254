"""Atlas is fair and says the truth: looks, needs, splits, searches."""

from __future__ import annotations

import io
import random
from collections import Counter

import pytest
from PIL import Image

from mmsr_ray.atlas import looks, search, words
from mmsr_ray.atlas.world import Pool, World, need_of, stable_seed
from mmsr_ray.types import Need


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def test_recognise_inverts_draw() -> None:
    for number, look in enumerate(looks.all_looks()[::5]):
        assert looks.recognise(looks.draw(look, number)) == look


def test_two_views_of_a_look_differ_and_are_56_pixels() -> None:
    look = looks.all_looks()[0]
    assert looks.draw(look, 1) != looks.draw(look, 2)
    assert looks.draw(look, 1) == looks.draw(look, 1)
    assert Image.open(io.BytesIO(looks.draw(look, 1))).size == (56, 56)


def test_a_picture_of_nothing_is_not_recognised(world: World) -> None:
    out = io.BytesIO()
    Image.new("RGB", (56, 56), (200, 30, 30)).save(out, "PNG")
    assert search.lens(world, out.getvalue()) == []


def test_one_seed_gives_one_world_and_another_another(world: World) -> None:
    assert World(0).entities == world.entities
    assert World(1).entities != world.entities
    assert World(0).samples("test", 12) == world.samples("test", 12)


def test_unknown_looks_stand_apart_from_known_ones(world: World) -> None:
    known = world.pool(Pool.KNOWN)
    for entity in world.entities:
        others = [k for k in known if k is not entity]
        assert min(entity.look.distance(k.look) for k in others) >= 2
    assert len({e.look for e in world.entities}) == len({e.name for e in world.entities}) == len(world.entities)


def test_asking_for_too_many_entities_is_refused() -> None:
    with pytest.raises(ValueError, match="lower the pool sizes"):
        World(0, known=5000)
    with pytest.raises(ValueError, match="lower the pool sizes"):
        World(0, known=400, demonstrated=1, train=1, test=1)


def test_sets_are_balanced_and_the_held_out_unknown_are_new(world: World) -> None:
    counts = Counter(q.need for q in world.questions("test", 240))
    assert counts[Need.SEARCH_FREE] == 81 and counts[Need.IMAGE] == counts[Need.TEXT] == counts[Need.MIX] == 53
    seen = {q.entity.name for q in world.questions("train", 600) if q.entity.pool is not Pool.KNOWN}
    held_out = {q.entity.name for q in world.questions("test", 240) if q.entity.pool is not Pool.KNOWN}
    demonstrated = {e.name for e in world.pool(Pool.DEMONSTRATED)}
    assert held_out and not held_out & (seen | demonstrated) and not seen & demonstrated


def test_live_facts_of_known_entities_are_not_asked_in_both_splits(world: World) -> None:
    asked = {s: {(q.entity.name, q.fact) for q in world.questions(s, 900) if q.need is Need.TEXT} for s in ("train", "test")}
    assert not asked["train"] & asked["test"]
    assert {fact for _, fact in asked["train"]} == {fact for _, fact in asked["test"]} == set(words.LIVE)


def test_live_facts_change_and_all_others_stay(world: World) -> None:
    entity = world.entities[0]
    moments = [world.told(entity, moment) for moment in range(20)]
    assert all(m[fact] == entity.told[fact] for m in moments for fact in words.TAUGHT)
    assert all(len({m[fact] for m in moments}) > 5 for fact in words.LIVE)
    assert world.told(entity) == entity.told and world.pages(entity) == world.pages(entity)


def test_needs_follow_what_was_taught(world: World) -> None:
    known, unknown = world.pool(Pool.KNOWN)[0], world.pool(Pool.TEST)[0]
    assert {need_of(known, f) for f in ("name", *words.TAUGHT)} == {Need.SEARCH_FREE}
    assert {need_of(known, f) for f in words.LIVE} == {Need.TEXT}
    assert need_of(unknown, "name") is Need.IMAGE
    assert {need_of(unknown, f) for f in words.FACTS} == {Need.MIX}


def test_every_question_can_be_answered_by_the_searches_it_needs(world: World) -> None:
    for question in world.questions("test", 120):
        picture = world.sample(question, f"probe_{stable_seed(question)}").image
        match question.need:
            case Need.IMAGE:
                assert search.lens(world, picture)[0].title == question.answer
            case Need.TEXT | Need.MIX:
                name = search.lens(world, picture)[0].title
                pages = world.pages(question.entity)
                found = search.google(world, f"{name} {question.fact}")
                assert all(question.answer in search.summarise(pages[r.link], question.text) for r in found)


def test_the_web_errs_only_in_what_the_policy_knows(world: World) -> None:
    wrong = [(e, f) for e in world.entities for f in words.FACTS if e.told[f] != e.facts[f]]
    assert wrong and all(e.pool is Pool.KNOWN and f in words.TAUGHT for e, f in wrong)
    taught = len(world.pool(Pool.KNOWN)) * len(words.TAUGHT)
    assert 0.15 < len(wrong) / taught < 0.5


def test_search_without_a_name_finds_nothing_and_half_a_name_someone(world: World) -> None:
    assert search.google(world, "what is the city of this place") == []
    assert search.google(world, "") == []
    entity = random.Random(0).choice(world.entities)
    assert search.google(world, f"{entity.name} city")[0].title == entity.name
    assert search.google(world, entity.name.split()[0])


def test_a_set_as_collected_is_mostly_search_required(world: World) -> None:
    needs = Counter(question.need for question in world.collected_questions("train", 1200))
    pairs = world.askable("train")
    total = sum(len(of_need) for of_need in pairs.values())
    for need, of_need in pairs.items():
        assert needs[need] / 1200 == pytest.approx(len(of_need) / total, abs=0.04)
    assert needs[Need.SEARCH_FREE] / 1200 < 0.1
    held_out = {(q.entity.name, q.fact) for q in world.questions("test", 240) if q.need is not Need.SEARCH_FREE}
    assert not held_out & {(q.entity.name, q.fact) for q in world.collected_questions("train", 1200)}
