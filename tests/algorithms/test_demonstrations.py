"""Stored trajectories as demonstrations: what is taken, and that the student's tokens are those of the same episode."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmsr_ray.agent.episode import run_episode
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.tokens import Codec
from mmsr_ray.algorithms.demonstrations import choose, items_of, rebuild
from mmsr_ray.atlas.oracle import Teacher, answers
from mmsr_ray.atlas.teacher import AtlasTools
from mmsr_ray.atlas.teacher import Teacher as BlindTeacher
from mmsr_ray.atlas.world import World
from mmsr_ray.config import AgentConfig, RewardConfig
from mmsr_ray.data.schema import DataError
from mmsr_ray.evaluation.trajectories import write_trajectories
from mmsr_ray.rewards.score import score
from mmsr_ray.types import Group, Outcome, Sample, Sampling, Trajectory

LIMITS = AgentConfig(prompts="brief", topk=2, max_prompt_tokens=160, max_turn_tokens=24, max_total_tokens=320)
PROMPTS = PromptSet.load("brief")


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> Codec:
    return Codec.load(tiny_model, min_pixels=784, max_pixels=3136, thumbnail_max_pixels=784)


def scored(pair: tuple[Sample, Trajectory]) -> tuple[Sample, Trajectory]:
    sample, trajectory = pair
    return sample, replace(trajectory, reward=score(trajectory, sample, RewardConfig(), LIMITS.allowed_paths, 1))


@pytest.fixture(scope="module")
def pairs(codec: Codec) -> list[tuple[Sample, Trajectory]]:
    world = World(0)
    return [scored(pair) for pair in answers(Teacher(world, "oracle"), world.samples("train", 40), codec, PROMPTS, LIMITS)]


def groups_of(path: Path, codec: Codec, limits: AgentConfig = LIMITS) -> list[Group | str]:
    return list(rebuild(choose(path).places, codec, PROMPTS, limits))


def test_the_tokens_are_those_of_the_teachers_episode(pairs: list[tuple[Sample, Trajectory]], codec: Codec, tmp_path: Path) -> None:
    write_trajectories(tmp_path / "taught.parquet", pairs, split="train")
    found = groups_of(tmp_path / "taught.parquet", codec)
    assert len(found) == len(pairs)
    for group, (sample, trajectory) in zip(found, pairs, strict=True):
        assert isinstance(group, Group)
        (again,) = group.trajectories
        assert group.sample == replace(sample, image_url=None, category=None)
        np.testing.assert_array_equal(again.tokens.ids, trajectory.tokens.ids)
        np.testing.assert_array_equal(again.tokens.loss_mask, trajectory.tokens.loss_mask)
        assert again.tokens.pictures == trajectory.tokens.pictures
        (item,) = items_of(group)
        assert (item.length, item.sampled_tokens) == (trajectory.tokens.length, sum(turn.tokens for turn in trajectory.turns))


def test_only_right_and_well_formed_answers_are_taken_once(pairs: list[tuple[Sample, Trajectory]], tmp_path: Path) -> None:
    (right, done) = pairs[0]
    assert done.reward is not None
    wrong = replace(done, reward=replace(done.reward, correct=False))
    malformed = replace(done, reward=replace(done.reward, well_formed=False))
    broken = replace(done, reward=None, outcome=Outcome.INFRA_ERROR)
    rows = [(right, wrong), (right, malformed), (right, broken), (right, done), (right, done), pairs[1]]
    write_trajectories(tmp_path / "a.parquet", rows, split="train")
    choice = choose(tmp_path)
    assert choice.counts == {"wrong": 1, "malformed": 1, "broken": 1, "repeated": 1, "accepted": 2}
    assert [place.rows for place in choice.places] == [(3, 5)]


def test_what_the_student_cannot_hold_is_dropped(pairs: list[tuple[Sample, Trajectory]], codec: Codec, tmp_path: Path) -> None:
    write_trajectories(tmp_path / "taught.parquet", pairs, split="train")
    short = groups_of(tmp_path / "taught.parquet", codec, replace(LIMITS, max_turn_tokens=12))
    reasons = {item for item in short if isinstance(item, str)}
    assert reasons == {"a turn hit its token limit"}
    unsearching = groups_of(tmp_path / "taught.parquet", codec, replace(LIMITS, search_limit=0))
    kept = [item for item in unsearching if isinstance(item, Group)]
    assert kept and all(len(group.trajectories[0].turns) == 1 for group in kept)
    assert "more than 0 searches" in unsearching


def test_the_rag_workflow_comes_out_the_same(codec: Codec, tmp_path: Path) -> None:
    world = World(0)
    question = world.questions("train", 1)[0]
    sample = world.sample(question, "one")
    teacher = BlindTeacher(world, question, (), "rag", codec, random.Random(0), moment=-1)
    episode = run_episode(
        sample,
        index=0,
        workflow="rag",
        generate=teacher,
        tools=AtlasTools(world, 2),
        codec=codec,
        prompts=PROMPTS,
        limits=LIMITS,
        sampling=Sampling(max_tokens=24),
    )
    trajectory = asyncio.run(episode)
    taken = replace(trajectory, reward=replace(score(trajectory, sample, RewardConfig(), LIMITS.allowed_paths, 1), correct=True))
    write_trajectories(tmp_path / "rag.parquet", [(sample, taken)], split="train")
    (group,) = groups_of(tmp_path / "rag.parquet", codec)
    assert isinstance(group, Group)
    np.testing.assert_array_equal(group.trajectories[0].tokens.ids, trajectory.tokens.ids)


def test_a_path_without_demonstrations_is_told(pairs: list[tuple[Sample, Trajectory]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no parquet file at .*sft\.demonstrations"):
        choose(tmp_path)
    (tmp_path / "not.parquet").write_text("no")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        choose(tmp_path / "not.parquet")
    sample, done = pairs[0]
    assert done.reward is not None
    write_trajectories(tmp_path / "bad.parquet", [(sample, replace(done, reward=replace(done.reward, correct=False)))], split="train")
    with pytest.raises(DataError, match="ask a better teacher"):
        choose(tmp_path / "bad.parquet")
