"""Compiled norms, gates and rotations against transformers' own: the same numbers, and fewer of them kept."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from mmsr_ray.learner.batch import Row, collate
from mmsr_ray.learner.benchmark import GEOMETRY, build, make_rows
from mmsr_ray.learner.fused import fuse
from mmsr_ray.learner.model import Policy
from mmsr_ray.learner.pictures import PatchCache
from mmsr_ray.learner.shapes import SHAPES

from .test_footprint import SMALL, footprint, kept

ODD = replace(SHAPES["tiny"], vision_intermediate=130)  # no multiple of eight, as 3,420 is none


def scored(policy: Policy, rows: list[Row]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    policy.zero_grad()
    logprobs = policy(collate(rows, packed=True, ids=policy.token_ids, cache=PatchCache(GEOMETRY))).logprobs
    logprobs.sum().backward()
    return logprobs.detach(), {name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.grad is not None}


def test_fused_is_the_same_function_whatever_the_lengths() -> None:
    torch.manual_seed(0)
    policy = build(ODD, torch.device("cpu"), checkpointing=True, dtype=torch.float32, plain_layers=1)
    shapes = {name: parameter.shape for name, parameter in policy.named_parameters()}
    batches = [make_rows(count, ODD.vocabulary, scale=8, seed=count) for count in (3, 4, 6)]
    before = [scored(policy, rows) for rows in batches]
    fuse(policy.hf)
    scored(policy, batches[0])
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for rows, (logprobs, gradients) in zip(batches, before, strict=True):
        again, own = scored(policy, rows)
        torch.testing.assert_close(again, logprobs)
        for name, gradient in gradients.items():
            torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled, "new lengths compile nothing anew"
    assert {name: parameter.shape for name, parameter in policy.named_parameters()} == shapes, "what is published stays as it was"


def test_a_fused_layer_keeps_what_is_counted() -> None:
    shape = replace(SMALL, hidden=512, heads=16, kv_heads=4, intermediate=640)
    found = footprint(shape)
    fewer, tokens, patches = kept(shape, torch.bfloat16, fused=True)
    more, _, _ = kept(replace(shape, layers=3), torch.bfloat16, fused=True)
    assert (more - fewer) / tokens == found.layer_bytes(fused=True) < found.layer_bytes()
    wider = replace(shape, vision_intermediate=514)
    odd, _, _ = kept(wider, torch.bfloat16, fused=True)
    deeper, _, _ = kept(replace(wider, vision_depth=3), torch.bfloat16, fused=True)
    assert deeper - odd == patches * footprint(wider).block_bytes(fused=True) + footprint(wider).widened_bytes(fused=True)


def test_other_activations_are_refused() -> None:
    policy = build(SHAPES["tiny"], torch.device("cpu"), checkpointing=False, dtype=torch.float32)
    hf = copy.copy(policy.hf)
    config: Any = copy.deepcopy(policy.hf.config)
    config.vision_config.hidden_act = "gelu"
    hf.config = config
    with pytest.raises(ValueError, match="only SiLU"):
        fuse(hf)
