"""The worst micro-batches, and what they really need in memory on this machine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mmsr_ray.config import AgentConfig, Config, DataConfig, ModelConfig
from mmsr_ray.learner.batch import Row, TokenIds, collate
from mmsr_ray.learner.fitting import largest
from mmsr_ray.learner.meter import HostMeter
from mmsr_ray.learner.model import Policy
from mmsr_ray.learner.pictures import PatchCache, VisionGeometry
from mmsr_ray.learner.worst_case import Limits, batches
from tests.learner.conftest import IMAGE_PAD, make_policy

IDS = TokenIds(image_pad=IMAGE_PAD, padding=0)
LIMITS = Limits(length=100, sampled=40, blocks=(12, 2, 2))


def settings(**agent: Any) -> Config:
    model = ModelConfig(path="x", max_pixels=12 * 784, thumbnail_max_pixels=2 * 784)
    return Config(model=model, data=DataConfig(train="", test=""), agent=AgentConfig(**agent))


def test_limits_are_those_of_an_episode(geometry: VisionGeometry) -> None:
    limits = Limits.of(settings(max_total_tokens=320, max_turn_tokens=24, topk=2), geometry)
    assert limits == Limits(length=320, sampled=72, blocks=(12, 2, 2))
    assert Limits.of(settings(max_total_tokens=320, topk=2, image_search_limit=0), geometry).blocks == (12,)
    assert Limits.of(settings(max_total_tokens=50, topk=9), geometry).blocks == (12, 2, 2, 2), "what does not fit is left out"


def test_the_paper_s_limits_use_every_token_of_the_largest_picture(geometry: VisionGeometry) -> None:
    config = Config(model=ModelConfig(path="x"), data=DataConfig(train="", test=""))
    (row,), _ = batches(Limits.of(config, geometry), 1, IDS, geometry)
    assert row.length == config.agent.max_total_tokens
    assert row.grids[0].prod() // 4 == config.model.max_pixels // 784
    assert len(row.pictures) == 1 + config.agent.topk


@pytest.mark.parametrize(("tokens", "long_rows", "short_rows"), [(1, 1, 1), (100, 1, 2), (250, 2, 5), (460, 4, 10)])
def test_as_many_rows_as_the_tokens_allow_and_one_at_least(geometry: VisionGeometry, tokens: int, long_rows: int, short_rows: int) -> None:
    long, short = batches(LIMITS, tokens, IDS, geometry)
    assert [len(long), len(short)] == [long_rows, short_rows]
    assert {row.length for row in long} == {100}
    assert {int(row.loss_mask.sum()) for row in long} == {40}
    assert {row.length for row in short} == {46}
    assert len({p.sha for row in short for p in row.pictures}) == 3 * short_rows


@pytest.mark.parametrize("packed", [False, True])
def test_the_learner_takes_them_like_any_row(policy: Policy, cache: PatchCache, packed: bool) -> None:
    for rows in batches(LIMITS, 200, IDS, cache.geometry):
        batch = collate([Row(row, math.nan) for row in rows], packed=packed, ids=IDS, cache=cache)
        assert np.isfinite(policy(batch).logprobs.detach()).all()
        assert batch.grids.shape[0] == 3 * len(rows), "no picture is shared"


def test_without_pictures_there_is_one_kind(geometry: VisionGeometry) -> None:
    assert len(batches(Limits(100, 40, ()), 200, IDS, geometry)) == 1


def test_what_a_micro_batch_needs_is_measured_and_a_limit_is_kept(cache: PatchCache) -> None:
    """The search with real forward and backward passes, under a limit that allows some rows."""
    policy, meter, limits = make_policy(), HostMeter("here"), Limits(length=512, sampled=200, blocks=(16, 4, 4))

    def need(rows: int) -> int:
        meter.reset()
        for made in batches(limits, rows * limits.length, policy.token_ids, cache.geometry):
            batch = collate([Row(row, 1.0) for row in made], packed=False, ids=policy.token_ids, cache=PatchCache(cache.geometry))
            policy(batch).logprobs.sum().backward()
        return meter.peak()

    need(1)  # what a process allocates once
    meter.reset()
    rest, per_row = meter.now().own, (need(5) - need(1)) / 4
    assert per_row > 4 << 20, "activations of 512 tokens"
    found = largest(need, rest=rest, budget=rest + 6 * per_row, most=1000)
    told = largest(need, rest=rest, budget=rest + 6 * per_row, most=1000, measured=2)
    assert 3 <= found <= 9
    assert 3 <= told <= 9
    assert need(found) < rest + 9 * per_row
    memory = meter.now()
    assert 0 < memory.own < memory.total
    assert 0 < memory.free < memory.total
