"""A tiny Qwen2.5-VL by hand and rows to feed it: the learner's tests need neither Atlas nor a tokenizer."""

from __future__ import annotations

import hashlib
import io
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from mmsr_ray.learner.batch import Row
from mmsr_ray.learner.model import Policy, wrap
from mmsr_ray.learner.pictures import PatchCache, VisionGeometry
from mmsr_ray.types import Picture, SealedTokens

IMAGE_PAD, VISION_START, VISION_END = 3, 5, 6
VOCABULARY = 300
torch.set_num_threads(1)


def make_config(hidden: int = 64, layers: int = 2) -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [hidden // 32, 3 * hidden // 64, 3 * hidden // 64],
            },
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE_PAD,
        video_token_id=4,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=True,
    )


def make_policy(seed: int = 0, dtype: torch.dtype = torch.float32) -> Policy:
    torch.manual_seed(seed)
    hf = Qwen2_5_VLForConditionalGeneration(make_config())
    with torch.no_grad():  # HF's init leaves biases and norms at 0 and 1: disturb them so that mistakes show
        for parameter in hf.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return wrap(cast(Any, hf).to(dtype))


def make_picture(width: int, height: int, seed: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return Picture(buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest())


def make_row(seed: int, *, length: int = 40, pictures: tuple[tuple[int, int, int], ...] = ((56, 56, 0),), advantage: float = 1.0) -> Row:
    """A row with `pictures` given as (width, height, seed), each between vision marks, and two sampled stretches."""
    rng = np.random.default_rng(seed)
    ids: list[int] = rng.integers(10, VOCABULARY, 5).tolist()
    grids, made = [], []
    for width, height, picture_seed in pictures:
        grid = (1, height // 14, width // 14)
        ids += [VISION_START, *[IMAGE_PAD] * (grid[1] * grid[2] // 4), VISION_END, *rng.integers(10, VOCABULARY, 3).tolist()]
        grids.append(grid)
        made.append(make_picture(width, height, picture_seed))
    while len(ids) < length:
        ids.append(int(rng.integers(10, VOCABULARY)))
    total = len(ids)
    mask = np.zeros(total, dtype=bool)
    mask[total - 12 : total - 7] = True
    mask[total - 4 :] = True
    logprobs = np.where(mask, -rng.random(total) * 3, 0).astype(np.float32)
    tokens = SealedTokens(
        ids=np.array(ids, dtype=np.int32),
        loss_mask=mask,
        logprobs=logprobs,
        versions=np.where(mask, 0, -1).astype(np.int32),
        grids=np.array(grids, dtype=np.int32).reshape(-1, 3),
        pictures=tuple(made),
    )
    return Row(tokens, advantage)


@pytest.fixture(scope="session")
def processor() -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 64)


@pytest.fixture(scope="session")
def geometry(processor: Qwen2VLImageProcessor, tmp_path_factory: pytest.TempPathFactory) -> VisionGeometry:
    folder = tmp_path_factory.mktemp("processor")
    processor.save_pretrained(folder)
    return VisionGeometry.load(folder)


@pytest.fixture
def cache(geometry: VisionGeometry) -> PatchCache:
    return PatchCache(geometry)


@pytest.fixture(scope="session")
def policy() -> Policy:
    return make_policy()
