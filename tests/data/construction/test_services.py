"""Pictures, pages and an author by real HTTP, on good days and bad ones."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from mmsr_ray.atlas.web import Faults
from mmsr_ray.config import ProviderConfig
from mmsr_ray.data.construction.candidate import Candidate, key_of
from mmsr_ray.data.construction.illustration import illustrate
from mmsr_ray.data.construction.rules import Draft
from mmsr_ray.data.construction.rules import faults as faults_of
from mmsr_ray.data.construction.services import ServiceFailed, Services
from mmsr_ray.data.construction.settings import ConstructionConfig
from mmsr_ray.data.construction.taxonomy import classify
from mmsr_ray.data.construction.writing import write
from mmsr_ray.tools.local import LocalTools
from tests.data.construction.web import WORLD, services

NAMES = [entity.name for entity in WORLD.entities]


def concept(name: str) -> Candidate:
    return Candidate(key_of(name), concept=name)


async def illustrated(names: list[str], web: Services, settings: ConstructionConfig) -> list[Candidate]:
    made = await asyncio.gather(*(illustrate(concept(name), web, settings) for name in names))
    return [candidate for group in made for candidate in group]


async def test_a_concept_gets_pictures_pages_licence_and_source() -> None:
    settings = ConstructionConfig(pictures_per_concept=2)
    async with services() as (web, _):
        first, second = await illustrated(NAMES[:1], web, settings)
    assert first.kept and second.kept and first.key != second.key and first.image != second.image
    assert NAMES[0] in first.page_text and first.page_url.startswith("http") and first.image_url.endswith(".png")
    assert first.source == "Atlas" and first.licence.startswith("http")


async def test_a_concept_without_picture_and_pages_that_are_gone_are_dropped_with_a_reason() -> None:
    settings = ConstructionConfig()
    async with services(Faults(gone=1.0)) as (web, _):
        made = await illustrated([NAMES[0], "Nobody Whatever"], web, settings)
    assert [candidate.status for candidate in made] == ["page gone", "no picture"]
    async with services(Faults(gone=0.5)) as (web, _):
        made = await illustrated(NAMES, web, settings)
    counts = Counter(candidate.status for candidate in made)
    assert counts["page gone"] < 0.4 * len(NAMES) and counts["kept"] > 0.6 * len(NAMES)  # the other page of an entity takes its place


async def test_questions_pass_the_rules_and_have_a_category() -> None:
    settings = ConstructionConfig(questions_per_picture=2)
    async with services() as (web, _):
        pictures = await illustrated(NAMES[:12], web, settings)
        written = [c for group in await asyncio.gather(*(write(p, web, settings) for p in pictures)) for c in group]
        sorted_ = [c for group in await asyncio.gather(*(classify(w, web, settings) for w in written)) for c in group]
    assert len(written) == 24 and all(c.kept for c in sorted_)
    assert not any(faults_of(Draft(c.question, c.answer), c.concept, c.page_text, 8) for c in written)
    assert all(c.category in settings.categories for c in sorted_) and len({c.category for c in sorted_}) > 2
    assert len({c.key for c in written}) == 24
    assert all(a.answer != b.answer for a, b in zip(written[::2], written[1::2], strict=True))


@pytest.mark.parametrize(
    ("lapse", "status"),
    [
        ("refuse", "question: refused"),
        ("ramble", "question: no JSON"),
        ("invent", "question: not in the page"),
        ("tell", "question: names the concept"),
    ],
)
async def test_a_model_that_never_does_as_told_costs_its_candidates(lapse: str, status: str) -> None:
    settings = ConstructionConfig(question_tries=2)
    async with services(Faults(**{lapse: 1.0})) as (web, _):
        pictures = await illustrated(NAMES[:3], web, settings)
        written = [c for group in await asyncio.gather(*(write(p, web, settings) for p in pictures)) for c in group]
    assert [c.status for c in written] == [status] * 3 and all(c.detail for c in written)


async def test_a_model_that_errs_at_times_is_told_so_and_asked_again() -> None:
    settings = ConstructionConfig(question_tries=6)
    async with services(Faults(refuse=0.15, ramble=0.15, invent=0.15, tell=0.15)) as (web, _):
        pictures = await illustrated(NAMES[:20], web, settings)
        written = [c for group in await asyncio.gather(*(write(p, web, settings) for p in pictures)) for c in group]
        sorted_ = [c for group in await asyncio.gather(*(classify(w, web, settings) for w in written)) for c in group]
    assert sum(c.kept for c in written) >= 17
    assert sum(c.kept for c in sorted_) >= 16


async def test_a_service_that_is_down_is_no_verdict_on_the_candidate() -> None:
    async with services() as (web, config):
        (picture,) = await illustrated(NAMES[:1], web, ConstructionConfig())
        config.tools.model = ProviderConfig(kind="chat", url="http://127.0.0.1:9/v1", model="m", rate_per_second=0)
        config.tools.attempts = 1
        async with LocalTools(config) as tools:
            with pytest.raises(ServiceFailed, match="unavailable"):
                await write(picture, Services(tools, structured=False), ConstructionConfig())
