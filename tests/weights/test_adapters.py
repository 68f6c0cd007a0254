"""Adapters on their way: names, completeness, the merge, and which layers of an engine they touch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmsr_ray.weights.adapters import Adapter, AdapterError, collect, expected, is_adapter, layers_to_reload
from mmsr_ray.weights.publisher import buckets
from mmsr_ray.weights.transfer import BaseWeights, WeightMismatch, compare_names

PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"], "qkv": ["qkv"]}
ATTENTION = "language_model.model.layers.0.self_attn."
KNOWN = {
    *(ATTENTION + name for name in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias")),
    ATTENTION + "o_proj.weight",
    "language_model.model.layers.1.self_attn.q_proj.weight",
    "language_model.model.norm.weight",
    "visual.blocks.0.attn.q_proj.weight",
}


def adapter(dtype: torch.dtype = torch.float32) -> Adapter:
    torch.manual_seed(0)
    return Adapter(torch.randn(2, 6).to(dtype), torch.randn(4, 2).to(dtype), 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_travel_as_they_are(dtype: torch.dtype) -> None:
    sent = {"a.b": adapter(dtype), "c": adapter(dtype)}
    named = [pair for module, one in sent.items() for pair in one.named(module)]
    arrived = {name: packed.tensor().clone() for bucket in buckets(named, None, 10) for name, packed in bucket.items()}
    assert all(is_adapter(n) for n in arrived)
    assert not all(is_adapter(n) for n in ["a.b.weight"])
    for module, found in collect(arrived).items():
        assert torch.equal(found.a, sent[module].a) and torch.equal(found.b, sent[module].b) and found.scale == sent[module].scale


def test_what_is_incomplete_or_strange_is_refused() -> None:
    named = dict(adapter().named("a"))
    del named["a.lora_B.weight"]
    with pytest.raises(AdapterError, match=r"1 tensors .* a\.lora_B\.weight"):
        collect(named)
    with pytest.raises(AdapterError, match=r"norm\.weight"):
        collect({**dict(adapter().named("a")), "norm.weight": torch.ones(1)})


def test_the_merge_adds_in_float32_and_ends_in_the_learner_s_dtype() -> None:
    base = torch.ones(4, 6, dtype=torch.bfloat16)
    one = adapter()
    assert one.merged(base).dtype == torch.float32
    torch.testing.assert_close(one.merged(base), 1.0 + 0.3 * one.b @ one.a)
    low = adapter(torch.bfloat16)
    assert torch.equal(low.merged(base), (1.0 + 0.3 * low.b.float() @ low.a.float()).bfloat16())
    assert torch.equal(one._replace(scale=0.0).merged(base), base.float())


def test_one_module_brings_every_tensor_of_the_layer_that_the_engine_makes_of_it() -> None:
    layers = layers_to_reload({ATTENTION + "k_proj", ATTENTION + "o_proj"}, KNOWN, PACKED)
    assert layers == {
        ATTENTION + "qkv_proj": [ATTENTION + f"{p}_proj.{end}" for p in "qkv" for end in ("weight", "bias")],
        ATTENTION + "o_proj": [ATTENTION + "o_proj.weight"],
    }


def test_all_layers_of_a_kind_have_an_adapter_or_the_update_is_refused() -> None:
    wanted = {ATTENTION + "q_proj", "language_model.model.layers.1.self_attn.q_proj"}
    assert expected({ATTENTION + "q_proj"}, KNOWN) == wanted
    compare_names(wanted, expected(wanted, KNOWN))
    with pytest.raises(WeightMismatch, match=r"1 not published .*layers\.1"):
        compare_names({ATTENTION + "q_proj"}, expected({ATTENTION + "q_proj"}, KNOWN))
    strange = wanted | {"language_model.model.layers.7.self_attn.q_proj"}
    with pytest.raises(WeightMismatch, match=r"1 unknown .*layers\.7"):
        compare_names(strange, expected(strange, KNOWN))


def test_base_weights_are_read_by_the_engine_s_names(tiny_model: Path) -> None:
    base = BaseWeights(str(tiny_model), None, lambda name: f"engine.{name}")
    name = next(iter(base.names))
    own, tensor = base.read(name, torch.device("cpu"))
    assert name == f"engine.{own}"
    assert tensor.numel() > 0
    with pytest.raises(KeyError):
        base.read(own, torch.device("cpu"))
