from __future__ import annotations

import pytest
import torch

from mmsr_ray.learner.batch import collate
from mmsr_ray.learner.model import Policy, named_weights
from mmsr_ray.learner.pictures import PatchCache
from mmsr_ray.learner.settings import LearnerConfig, LoRAConfig
from mmsr_ray.learner.trainable import adapted_layers, checkpoint_weights, choose, reference_mode, trained_parameters
from tests.learner.conftest import make_policy, make_row

ROWS = [make_row(1, length=30), make_row(2, length=41, pictures=((56, 56, 0), (28, 28, 7)))]


def adapted(rank: int = 4) -> Policy:
    policy = make_policy()
    choose(policy, LearnerConfig(lora=LoRAConfig(rank=rank, alpha=8)))
    return policy


def disturb(policy: Policy) -> None:
    """What training would do: B is zero at the start, so an untrained adapter does nothing."""
    torch.manual_seed(0)
    for layer in adapted_layers(policy):
        for name, parameter in layer.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.05)


def logprobs(policy: Policy, cache: PatchCache) -> torch.Tensor:
    with torch.no_grad():
        return policy(collate(ROWS, packed=False, ids=policy.token_ids, cache=cache)).logprobs


def test_all_weights_learn_by_default() -> None:
    policy = make_policy()
    choose(policy, LearnerConfig())
    assert len(trained_parameters(policy)) == len(list(policy.parameters()))
    assert {w.name: w.value().data_ptr() for w in checkpoint_weights(policy)} == {n: p.data_ptr() for n, p in named_weights(policy).items()}


def test_a_frozen_vision_tower_gets_no_gradient(cache: PatchCache) -> None:
    policy = make_policy()
    choose(policy, LearnerConfig(freeze_vision=True))
    policy(collate(ROWS, packed=False, ids=policy.token_ids, cache=cache)).logprobs.sum().backward()
    for name, parameter in policy.named_parameters():
        assert (parameter.grad is None) == (".visual." in name), name


def test_adapters_start_as_nothing_and_learn_alone(cache: PatchCache) -> None:
    plain, policy = make_policy(), adapted()
    assert torch.equal(logprobs(plain, cache), logprobs(policy, cache))
    names = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert len(adapted_layers(policy)) == 7 * 2  # seven projections in each of two layers, none in the vision tower
    policy(collate(ROWS, packed=True, ids=policy.token_ids, cache=cache)).logprobs.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in policy.parameters())


def test_merged_weights_are_the_checkpoint_of_the_adapted_policy(cache: PatchCache) -> None:
    policy = adapted()
    disturb(policy)
    plain = make_policy()
    assert not torch.allclose(logprobs(policy, cache), logprobs(plain, cache), atol=1e-3)
    merged = {weight.name: weight.value() for weight in checkpoint_weights(policy)}
    assert list(merged) == list(named_weights(plain))
    for name, parameter in named_weights(plain).items():
        parameter.data.copy_(merged[name])
    torch.testing.assert_close(logprobs(plain, cache), logprobs(policy, cache), rtol=1e-5, atol=1e-5)


def test_reference_mode_is_the_model_at_the_start(cache: PatchCache) -> None:
    policy = adapted()
    before = logprobs(policy, cache)
    disturb(policy)
    trained = logprobs(policy, cache)
    with reference_mode(policy):
        assert torch.equal(logprobs(policy, cache), before)
    assert torch.equal(logprobs(policy, cache), trained)
    assert all(p.requires_grad == (".lora_" in name) for name, p in policy.named_parameters())


def test_a_target_that_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match=r"learner\.lora\.targets"):
        choose(make_policy(), LearnerConfig(lora=LoRAConfig(rank=4, targets=["query_key_value"])))
