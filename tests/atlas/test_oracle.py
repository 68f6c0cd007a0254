"""Atlas's knowing teachers: the oracle searches exactly what is needed, the worldly one knows what its student cannot."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mmsr_ray.agent.grammar import format_ok
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.tokens import Codec
from mmsr_ray.atlas.oracle import Teacher, answers, understand
from mmsr_ray.atlas.world import Pool, World
from mmsr_ray.config import AgentConfig, RewardConfig
from mmsr_ray.rewards.score import score
from mmsr_ray.types import Need, Sample, ToolKind, Trajectory

LIMITS = AgentConfig(prompts="brief", topk=2, max_prompt_tokens=160, max_turn_tokens=24, max_total_tokens=320)
NEEDED = {
    Need.SEARCH_FREE: (0, 0),
    Need.IMAGE: (1, 0),
    Need.TEXT: (0, 1),
    Need.MIX: (1, 1),
}


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> Codec:
    return Codec.load(tiny_model, min_pixels=784, max_pixels=3136, thumbnail_max_pixels=784)


def played(world: World, codec: Codec, name: str, samples: list[Sample]) -> list[tuple[Sample, Trajectory]]:
    return answers(Teacher(world, name), samples, codec, PromptSet.load("brief"), LIMITS)


def searches(trajectory: Trajectory) -> tuple[int, int]:
    return trajectory.calls(ToolKind.IMAGE), trajectory.calls(ToolKind.TEXT)


def test_a_question_is_understood_from_what_is_shown(world: World) -> None:
    for number, question in enumerate(world.questions("train", 60)):
        sample = world.sample(question, f"q{number}")
        assert understand(world, sample.image, sample.question) == question
    assert understand(world, b"no picture", "What is this?") is None


def test_the_oracle_is_right_and_searches_exactly_what_is_needed(world: World, codec: Codec) -> None:
    pairs = played(world, codec, "oracle", world.samples("train", 90))
    assert len(pairs) == 90
    assert {sample.need for sample, _ in pairs} == set(Need)
    for sample, trajectory in pairs:
        assert sample.need is not None
        assert searches(trajectory) == NEEDED[sample.need]
        assert score(trajectory, sample, RewardConfig(), LIMITS.allowed_paths, 1).correct
        assert format_ok([turn.text for turn in trajectory.turns], LIMITS.allowed_paths)


def test_the_worldly_teacher_knows_half_of_the_strangers(world: World, codec: Codec) -> None:
    pairs = played(world, codec, "worldly", world.samples("train", 120))
    unsearched = Counter(sample.need for sample, trajectory in pairs if searches(trajectory) == (0, 0))
    total = Counter(sample.need for sample, _ in pairs)
    assert unsearched[Need.TEXT] == 0, "live facts of known entities are looked up by both"
    assert 0.3 < unsearched[Need.IMAGE] / total[Need.IMAGE] < 0.7
    assert 0.3 < unsearched[Need.MIX] / total[Need.MIX] < 0.7
    assert all(score(t, sample, RewardConfig(), LIMITS.allowed_paths, 1).correct for sample, t in pairs)


def test_bare_answers_say_only_what_is_known_or_read(world: World) -> None:
    teacher = Teacher(world, "oracle")
    stranger = next(q for q in world.questions("test", 60) if q.need is Need.MIX)
    assert stranger.entity.pool is Pool.TEST
    assert teacher.bare_answer(stranger, read=False) == " unknown"
    assert teacher.bare_answer(stranger, read=True) == f" {stranger.answer}"
    assert teacher.bare_query(stranger) == f" {stranger.entity.name} {stranger.fact}"
    with pytest.raises(ValueError, match="choose one of oracle, worldly"):
        Teacher(world, "parrot")
