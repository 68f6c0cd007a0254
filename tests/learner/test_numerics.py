from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmsr_ray.learner.batch import Row
from mmsr_ray.learner.numerics import Differences, learner_with_engine, learner_with_itself, one_by_one
from mmsr_ray.learner.pictures import PatchCache
from tests.learner.conftest import make_policy, make_row

CPU = torch.device("cpu")
PICTURES = ((56, 56, 0), (28, 28, 7), (28, 28, 8))
ROWS = [make_row(i, length=60 + 9 * i, pictures=PICTURES[: 1 + i % 3]) for i in range(5)]


@pytest.mark.parametrize(("dtype", "mean", "worst"), [(torch.float32, 2e-6, 2e-5), (torch.bfloat16, 0.02, 0.1)])
def test_layout_and_batch_size_do_not_matter_beyond_rounding(cache: PatchCache, dtype: torch.dtype, mean: float, worst: float) -> None:
    found = learner_with_itself(make_policy(dtype=dtype), ROWS, cache, CPU)
    for compared in ("packed_against_padded", "alone_against_together"):
        differences = Differences(**found[compared])
        assert differences.tokens == sum(int(row.tokens.loss_mask.sum()) for row in ROWS)
        assert differences.mean <= mean and differences.mean <= differences.p99 <= differences.max <= worst


def test_an_engine_that_is_off_is_found_out(cache: PatchCache) -> None:
    policy = make_policy()
    own = iter(one_by_one(policy, ROWS, cache, CPU).numpy())
    agreed, off = [], []
    for row in ROWS:
        logprobs = np.zeros(row.tokens.length, dtype=np.float32)
        logprobs[row.tokens.loss_mask] = [next(own) for _ in range(int(row.tokens.loss_mask.sum()))]
        agreed.append(Row(replace(row.tokens, logprobs=logprobs), 1.0))
        off.append(Row(replace(row.tokens, logprobs=logprobs - np.float32(0.5) * row.tokens.loss_mask), 1.0))
    assert learner_with_engine(policy, agreed, cache, CPU).max < 1e-6
    found = learner_with_engine(policy, off, cache, CPU)
    assert (found.mean, found.max) == (pytest.approx(0.5, abs=1e-5), pytest.approx(0.5, abs=1e-5))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        Differences.of(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="cannot be compared"):
        Differences.of(torch.zeros(2), torch.zeros(3))
