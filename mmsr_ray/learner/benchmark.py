"""Speed of the learner's compute core on one GPU, with torch and transformers alone.

    python -m mmsr_ray.learner.benchmark --size 7b [--kernel varlen] [--micro-batch-tokens 8192] [--plain-layers 28] [--fused]

builds the real Qwen2.5-VL shape with random bfloat16 weights, makes
rows whose lengths follow the search agent's (one picture; a picture and thumbnails; a picture, thumbnails and text),
and runs forward and backward over one batch of them, padded and packed. It prints one JSON object.

The kernel is the one of the packed layout; the padded one is SDPA with its causal flag, never a mask.

What is measured: forward, backward and gradient accumulation in bfloat16, collation included, after warm-up passes.
What is not: the optimiser step, any communication, reading of weights. The model FLOPs behind MFU leave out what
gradient checkpointing computes twice, so MFU understates how busy the card is.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from mmsr_ray.learner import attention
from mmsr_ray.learner.batch import MicroBatch, Row
from mmsr_ray.learner.model import Policy, wrap
from mmsr_ray.learner.numerics import learner_with_itself
from mmsr_ray.learner.pictures import PatchCache, VisionGeometry
from mmsr_ray.learner.plan import Item, MiniBatch, Portion, plan_update
from mmsr_ray.learner.shapes import IMAGE_PAD, SHAPES, VISION_END, VISION_START, Shape, shape_config
from mmsr_ray.learner.step import collate_portion, contribution
from mmsr_ray.types import Picture, SealedTokens

PEAK_BF16 = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}  # dense, by NVIDIA's data sheets
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GEOMETRY = VisionGeometry(patch=14, merge=2, temporal_patch=2, mean=CLIP_MEAN, std=CLIP_STD, rescale=1 / 255)
PICTURE_SIDE, THUMBNAIL_SIDE, THUMBNAILS = 896, 224, 5
GROUP = 8  # rows of one question, which share their pictures


def build(
    shape: Shape,
    device: torch.device,
    *,
    checkpointing: bool,
    dtype: torch.dtype = torch.bfloat16,
    plain_layers: int = 0,
    fused: bool = False,
) -> Policy:
    """Policy of a shape with random weights, made on the device."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            hf = Qwen2_5_VLForConditionalGeneration(shape_config(shape, dtype))
    finally:
        torch.set_default_dtype(default)
    return wrap(hf, gradient_checkpointing=checkpointing, plain_layers=plain_layers, fused=fused)


def _picture(side: int, seed: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (side // 14, side // 14, 3), dtype=np.uint8).repeat(14, 0).repeat(14, 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return Picture(buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest())


def make_rows(count: int, vocabulary: int, *, group: int = GROUP, scale: int = 1, seed: int = 0) -> list[Row]:
    """Rows as the agent makes them: a third answer at once, a third search images, a third go on to text.

    A group of `group` rows shares its picture and thumbnails. `scale` divides picture sides and text lengths.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        kind = number % 3
        sides = [PICTURE_SIDE // scale] + [THUMBNAIL_SIDE // scale] * (THUMBNAILS if kind else 0)
        names = [number // group, *(10_000 + number // group * THUMBNAILS + i for i in range(len(sides) - 1))]
        text = (int(rng.integers(300, 600)) + (0, 300, int(rng.integers(1500, 4000)))[kind]) // scale
        sampled = min(int(rng.integers(100, 400)) // scale + 1, text // 2)
        rows.append(make_row(rng, list(zip(sides, names, strict=True)), text, sampled, vocabulary))
    return rows


def make_row(rng: np.random.Generator, pictures: list[tuple[int, int]], text: int, sampled: int, vocabulary: int) -> Row:
    """One row: pictures given as (side in pixels, seed), then `text` tokens whose last `sampled` are the answer."""
    ids: list[int] = []
    for side, _ in pictures:
        ids += [VISION_START, *[IMAGE_PAD] * (side // 28) ** 2, VISION_END]
    ids += rng.integers(100, min(vocabulary, 100_000), text).tolist()
    mask = np.zeros(len(ids), dtype=bool)
    mask[-sampled:] = True
    tokens = SealedTokens(
        ids=np.array(ids, dtype=np.int32),
        loss_mask=mask,
        logprobs=np.zeros(len(ids), dtype=np.float32),
        versions=np.where(mask, 0, -1).astype(np.int32),
        grids=np.array([(1, side // 14, side // 14) for side, _ in pictures], dtype=np.int32).reshape(-1, 3),
        pictures=tuple(_picture(side, seed) for side, seed in pictures),
    )
    return Row(tokens, 1.0)


def items_of(rows: list[Row], group: int = GROUP) -> list[Item]:
    """Items whose `trajectory` is the row's number; `group` rows in a row are a group."""
    return [
        Item(i // group, i, 1.0, row.tokens.length, int(row.tokens.loss_mask.sum()), len(row.tokens.pictures), row.tokens.patches)
        for i, row in enumerate(rows)
    ]


def model_flops(shape: Shape, rows: list[Row], batches: list[MicroBatch]) -> float:
    """Floating-point operations of forward and backward over the real tokens and the distinct pictures, nothing twice.

    Matrix products count 6 per weight and token; attention 12 x width per pair of tokens that see each other
    (half of all pairs under the causal mask); the head counts for sampled tokens only.
    """
    head = shape.hidden // shape.heads
    attention = shape.hidden * (2 * shape.heads + 2 * shape.kv_heads) * head
    layer = attention + 3 * shape.hidden * shape.intermediate
    tokens = sum(row.tokens.length for row in rows)
    pairs = sum(row.tokens.length**2 / 2 for row in rows)
    sampled = sum(int(row.tokens.loss_mask.sum()) for row in rows)
    text = 6 * layer * shape.layers * tokens + 12 * shape.hidden * shape.layers * pairs + 6 * shape.hidden * shape.vocabulary * sampled
    width = shape.vision_hidden
    block = 4 * width**2 + 3 * width * shape.vision_intermediate
    patches = sum(int(batch.patches.shape[0]) for batch in batches)
    whole = sum(float((batch.grids.prod(1).double() ** 2).sum()) for batch in batches)
    full = min(4, shape.vision_depth)
    vision = 6 * patches * (block * shape.vision_depth + 2 * 3 * 14 * 14 * width + 4 * width * (4 * width + shape.hidden) / 4)
    vision += 12 * width * (full * whole + (shape.vision_depth - full) * 64 * patches)
    return text + vision


def measure(
    policy: Policy, shape: Shape, rows: list[Row], device: torch.device, *, packing: str, tokens: int, passes: int
) -> dict[str, Any]:
    """One layout: seconds of a pass over all rows (median), tokens/s, MFU and peak memory."""
    plan = plan_update(items_of(rows), world_size=1, micro_batch_tokens=tokens, packing=packing, loss="sft")
    mini = plan.minibatches[0]
    cache = PatchCache(GEOMETRY, max_bytes=4 << 30)
    batches = [collate_portion(portion, lambda item: rows[item.trajectory], policy, cache) for portion in mini.ranks[0]]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [_timed_pass(policy, rows, mini, cache, device) for _ in range(passes + 1)][1:]
    median = float(np.median(seconds))
    real = sum(row.tokens.length for row in rows)
    computed = sum(portion.tokens for portion in mini.ranks[0])
    flops = model_flops(shape, rows, batches)
    peak = next((value for name, value in PEAK_BF16.items() if name in _device_name(device)), None)
    return {
        "seconds": median,
        "tokens_per_second": real / median,
        "mfu": None if peak is None else flops / median / peak,
        "model_tflops_per_second": flops / median / 1e12,
        "peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        "micro_batches": len(batches),
        "real_tokens": real,
        "computed_tokens": computed,
        "padding_share": 1 - real / computed,
    }


def _timed_pass(policy: Policy, rows: list[Row], mini: MiniBatch, cache: PatchCache, device: torch.device) -> float:
    return sum(timed_portions(policy, rows, mini, cache, device)[0])


def timed_portions(policy: Policy, rows: list[Row], mini: MiniBatch, cache: PatchCache, device: torch.device) -> list[list[float]]:
    """Seconds of forward and backward of each rank's micro-batches, one after the other in this process."""
    policy.zero_grad(set_to_none=False)
    return [[_timed(policy, rows, portion, mini, cache, device) for portion in rank] for rank in mini.ranks]


def _timed(policy: Policy, rows: list[Row], portion: Portion, mini: MiniBatch, cache: PatchCache, device: torch.device) -> float:
    _synchronise(device)
    began = time.perf_counter()
    batch = collate_portion(portion, lambda item: rows[item.trajectory], policy, cache).to(device)
    contribution(policy, batch, mini, objective=None, temperature=1.0).loss.backward()
    _synchronise(device)
    return time.perf_counter() - began


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def run(
    size: str, *, rows: int, tokens: int, passes: int, checkpointing: bool, kernel: str = "sdpa", plain_layers: int = 0, fused: bool = False
) -> dict[str, Any]:
    """Both layouts of one size; see the module's docstring for what the numbers mean."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = SHAPES[size]
    if lacking := attention.missing(kernel, device):
        return {"suite": "gpu", "machine": _device_name(device), "size": size, "kernel": kernel, "not_available": lacking}
    torch.manual_seed(0)
    policy = build(shape, device, checkpointing=checkpointing, plain_layers=plain_layers, fused=fused)
    attention.use(policy.hf, kernel)
    made = make_rows(rows, shape.vocabulary, scale=8 if size == "tiny" else 1)
    result: dict[str, Any] = {
        "suite": "gpu",
        "machine": _device_name(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "kernel": kernel,
        "plain_layers": plain_layers,
        "fused": fused,
        "size": size,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "rows": rows,
        "lengths": [min(r.tokens.length for r in made), max(r.tokens.length for r in made)],
        "micro_batch_tokens": tokens,
        "gradient_checkpointing": checkpointing,
        "measured": "bf16 forward + backward with gradient accumulation; no optimiser step, no communication",
        "numerics": learner_with_itself(policy, made[:3], PatchCache(GEOMETRY, max_bytes=4 << 30), device),
    }
    for name, packing in (("padded", "never"), ("packed", "always")):
        result[name] = measure(policy, shape, made, device, packing=packing, tokens=tokens, passes=passes)
    result["packed_over_padded"] = result["packed"]["tokens_per_second"] / result["padded"]["tokens_per_second"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SHAPES), default="3b")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384)
    parser.add_argument("--passes", type=int, default=3, help="measured passes over all rows, after one to warm up")
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--plain-layers", type=int, default=0, help="layers that are not checkpointed")
    parser.add_argument("--fused", action="store_true", help="norms, gates and rotary positions as one kernel each (learner.fused)")
    parser.add_argument("--kernel", choices=attention.KERNELS, help="of attention over packed rows; default: what training takes here")
    a = parser.parse_args()
    result = run(
        a.size,
        rows=a.rows,
        tokens=a.micro_batch_tokens,
        passes=a.passes,
        checkpointing=not a.no_checkpointing,
        kernel=a.kernel or (attention.DEFAULT if torch.cuda.is_available() else "sdpa"),
        plain_layers=a.plain_layers,
        fused=a.fused,
    )
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
