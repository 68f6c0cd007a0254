"""The arithmetic against models: counts on the meta device, bytes that autograd keeps on real layers, peaks of a run on an H100."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from mmsr_ray.learner.benchmark import GEOMETRY, build, items_of, make_row, make_rows
from mmsr_ray.learner.footprint import Footprint
from mmsr_ray.learner.model import LOGIT_CHUNK_BYTES
from mmsr_ray.learner.pictures import PatchCache
from mmsr_ray.learner.plan import Item, plan_update
from mmsr_ray.learner.shapes import SHAPES, Shape, shape_config
from mmsr_ray.learner.step import collate_portion, contribution

PUBLISHED = {"3b": 3_754_622_976, "7b": 8_292_166_656, "32b": 33_452_718_336}  # as public code states of the checkpoints; 72B: not found
BASELINE = Path(__file__).parents[1] / "baselines" / "gpu.json"
SMALL = Shape(256, 1024, 2, 8, 2, 600, tied=True, vision_depth=2, vision_hidden=128, vision_intermediate=512)


def footprint(shape: Shape) -> Footprint:
    return Footprint.of(shape_config(shape).to_dict())


@pytest.mark.parametrize("size", sorted(SHAPES))
def test_parameters_are_exact(size: str) -> None:
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(shape_config(SHAPES[size]))
    found = footprint(SHAPES[size])
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.vision == sum(p.numel() for p in model.model.visual.parameters())
    assert found.layer == sum(p.numel() for p in model.model.language_model.layers[0].parameters())
    assert found.parameters == PUBLISHED.get(size, found.parameters)


def kept(shape: Shape, dtype: torch.dtype, *, checkpointing: bool = False, plain: int = 0, fused: bool = False) -> tuple[int, int, int]:
    """Bytes that autograd keeps after a forward pass, parameters left out; tokens and patches of the batch."""
    policy = build(shape, torch.device("cpu"), checkpointing=checkpointing, dtype=dtype, plain_layers=plain, fused=fused)
    rng = np.random.default_rng(0)
    rows = [make_row(rng, [(112, 1)], 60, 20, 600) for _ in range(2)]
    mini = plan_update(items_of(rows), world_size=1, micro_batch_tokens=1 << 30, packing="never", loss="sft").minibatches[0]
    batch = collate_portion(mini.ranks[0][0], lambda item: rows[item.trajectory], policy, PatchCache(GEOMETRY))
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (where := tensor.untyped_storage().data_ptr()) not in own:
            seen[where] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = contribution(policy, batch, mini, objective=None, temperature=1.0).loss
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values()), batch.ids.numel(), batch.patches.shape[0]


@pytest.mark.parametrize("shape", [SMALL, replace(SMALL, hidden=512, heads=16, kv_heads=4), replace(SMALL, intermediate=640, kv_heads=4)])
def test_a_layer_keeps_what_is_counted(shape: Shape) -> None:
    found = footprint(shape)
    fewer, tokens, patches = kept(shape, torch.bfloat16)
    more, _, _ = kept(replace(shape, layers=3), torch.bfloat16)
    assert (more - fewer) / tokens == found.layer_bytes()
    deeper, _, _ = kept(replace(shape, vision_depth=3), torch.bfloat16)
    assert (deeper - fewer) / patches == found.block_bytes()


def test_a_checkpointed_layer_keeps_its_input_and_a_plain_one_everything() -> None:
    shape = replace(SMALL, layers=3)
    all_checkpointed, tokens, _ = kept(shape, torch.bfloat16, checkpointing=True)
    fewer, _, _ = kept(SMALL, torch.bfloat16, checkpointing=True)
    assert (all_checkpointed - fewer) / tokens == 2 * shape.hidden
    one_plain, _, _ = kept(shape, torch.bfloat16, checkpointing=True, plain=1)
    assert (one_plain - fewer) / tokens == pytest.approx(footprint(shape).layer_bytes(), rel=0.05)


def peak(size: str, tokens: int, **settings: Any) -> float:
    """GiB of weights, gradients and activations of the benchmark's fullest micro-batch, each row a group of its own."""
    shape, found = SHAPES[size], footprint(SHAPES[size])
    made = make_rows(16, shape.vocabulary)
    plan = plan_update(items_of(made, group=1), world_size=1, micro_batch_tokens=tokens, packing="always", loss="sft")

    def activations(items: tuple[Item, ...]) -> int:
        chosen = [made[item.trajectory] for item in items]
        pictures = {picture.sha: grid for row in chosen for picture, grid in zip(row.tokens.pictures, row.tokens.grids, strict=True)}
        patches = sum(int(np.prod(grid)) for grid in pictures.values())
        text, sampled = (sum(getattr(item, name) for item in items) for name in ("length", "sampled_tokens"))
        return found.activations(text, patches, sampled, checkpointing=True, chunk=LOGIT_CHUNK_BYTES, **settings)

    return (4 * found.parameters + max(activations(portion.items) for portion in plan.minibatches[0].ranks[0])) / 2**30


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_the_peak_of_an_h100_is_foretold(size: str) -> None:
    """Measured there with torch.cuda.max_memory_allocated."""
    rows = json.loads(BASELINE.read_text())["rows"]
    measured = next(r["value"] for r in rows if f"{size.upper()} shape" in r["name"] and "peak memory" in r["name"])
    assert peak(size, 16_384) == pytest.approx(measured, rel=0.06)


def test_the_peaks_of_an_h200_are_foretold() -> None:
    """With and without fused layers, and with more and more of them not checkpointed."""
    rows = [r for r in json.loads(BASELINE.read_text())["later"][0]["rows"] if r["name"].endswith("peak memory")]
    for r in rows:
        tokens = int(re.search(r"micro-batches of ([\d,]+)", r["name"])[1].replace(",", ""))  # type: ignore[index]
        plain = int(re.search(r"(\d+) of 28 layers plain", r["name"])[1])  # type: ignore[index]
        assert peak("7b", tokens, plain_layers=plain, fused="fused" in r["name"]) == pytest.approx(r["value"], rel=0.08), r["name"]
    assert len(rows) == 10
