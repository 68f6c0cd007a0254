"""The shapes of the published Qwen2.5-VL sizes, and two small ones for machines without a GPU.

Promise: a model built from `shape_config` has the parameters of the published one, name by name and number by number; tests
compare the counts with those of the published checkpoints. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import Qwen2_5_VLConfig

IMAGE_PAD, PADDING, VISION_START, VISION_END = 11, 0, 12, 13


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers in which released sizes differ."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    vision_depth: int = 32
    vision_hidden: int = 1280
    vision_intermediate: int = 3420


SHAPES = {
    "3b": Shape(2048, 11008, 36, 16, 2, 151936, tied=True),
    "7b": Shape(3584, 18944, 28, 28, 4, 152064, tied=False),
    "32b": Shape(5120, 27648, 64, 40, 8, 152064, tied=False, vision_intermediate=3456),
    "72b": Shape(8192, 29568, 80, 64, 8, 152064, tied=False, vision_intermediate=3456),
    # no such Qwen2.5-VL was released: the language model of Qwen2.5-0.5B behind a vision tower of a quarter of the depth
    "0.5b": Shape(896, 4864, 24, 14, 2, 151936, tied=True, vision_depth=8),
    "tiny": Shape(128, 384, 2, 4, 2, 600, tied=True, vision_depth=2, vision_hidden=64, vision_intermediate=128),
}
PUBLISHED = {f"Qwen/Qwen2.5-VL-{size.upper()}-Instruct": size for size in ("3b", "7b", "32b", "72b")}


def shape_config(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL's config with a shape's numbers."""
    head = shape.hidden // shape.heads
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": 128_000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [head // 8, head * 3 // 16, head * 3 // 16]},
            "tie_word_embeddings": shape.tied,
            "bos_token_id": None,
            "pad_token_id": PADDING,
        },
        vision_config={
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_intermediate,
            "num_heads": 16 if shape.vision_hidden >= 1280 else 2,
            "out_hidden_size": shape.hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [i for i in (7, 15, 23, 31) if i < shape.vision_depth] or [shape.vision_depth - 1],
        },
        image_token_id=IMAGE_PAD,
        video_token_id=IMAGE_PAD + 100,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=shape.tied,
        dtype=str(dtype).removeprefix("torch."),
    )
