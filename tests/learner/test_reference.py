"""The frozen model of the KL term: where it rests, and that it is the same after a visit."""

from __future__ import annotations

import torch

from mmsr_ray.learner.batch import Row, collate
from mmsr_ray.learner.model import named_weights
from mmsr_ray.learner.pictures import PatchCache
from mmsr_ray.learner.reference import FrozenCopy
from tests.learner.conftest import make_policy, make_row

CPU = torch.device("cpu")


def test_a_frozen_model_stays_whole_at_home_while_it_visits_a_device() -> None:
    policy = make_policy()
    frozen = FrozenCopy(lambda: policy, CPU, torch.device("meta"))  # from where nothing can be copied back
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in (*policy.named_parameters(), *policy.named_buffers())}
    with frozen.awake():
        assert all(tensor.is_meta for tensor in (*policy.parameters(), *policy.buffers()))
    after = dict((*policy.named_parameters(), *policy.named_buffers()))
    assert after.keys() == before.keys()
    for name, (pointer, tensor) in before.items():
        assert after[name].data_ptr() == pointer and torch.equal(after[name], tensor)


def test_it_scores_with_the_weights_it_was_given_whatever_is_trained_since(cache: PatchCache) -> None:
    policy = make_policy()
    frozen = FrozenCopy(make_policy, CPU, CPU)
    frozen.freeze(named_weights(policy).items())
    batch = collate([Row(make_row(1).tokens, 1.0)], packed=False, ids=policy.token_ids, cache=cache)
    with frozen.awake() as scored:
        first = scored(batch, 1.0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(2.0)
    with frozen.awake() as scored:
        assert torch.equal(scored(batch, 1.0), first)
