"""The micro-batches that need the most memory among those a run can produce. Pure.

Promise: no micro-batch of real trajectories within the same limits needs more. Two kinds bound them: rows as long as an
episode may be, with all the tokens sampled that it may sample (activations of the language model, logits); and rows that are
nearly all picture (a picture token costs the vision tower several patches), as many as the tokens allow. All pictures are
distinct, for equal ones would go through the tower once.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmsr_ray.config import Config
from mmsr_ray.learner.batch import TokenIds
from mmsr_ray.learner.objective import longest_answer
from mmsr_ray.learner.pictures import VisionGeometry
from mmsr_ray.types import Group, Outcome, Picture, Sample, SealedTokens, Trajectory

MARKS = 2  # tokens around a picture
PROMPT = 16  # text tokens of the shortest row
ANSWER = 8  # sampled tokens of the shortest row


@dataclass(frozen=True, slots=True)
class Limits:
    """What one episode can be."""

    length: int  # tokens
    sampled: int
    blocks: tuple[int, ...]  # tokens of each picture it can have, the user's first

    @staticmethod
    def of(config: Config, geometry: VisionGeometry) -> Limits:
        """As the config's limits allow; thumbnails that do not fit into the longest row beside the others are left out."""
        unit = (geometry.patch * geometry.merge) ** 2
        searches = min(config.agent.image_search_limit, config.agent.search_limit)
        wanted = [config.model.max_pixels // unit, *[config.model.thumbnail_max_pixels // unit] * (searches * config.agent.topk)]
        left = config.agent.max_total_tokens - PROMPT - ANSWER
        blocks: list[int] = []
        for block in wanted:
            if block + MARKS <= left and block > 0:
                blocks.append(block)
                left -= block + MARKS
        return Limits(config.agent.max_total_tokens, longest_answer(config.agent), tuple(blocks))


def batches(limits: Limits, tokens: int, ids: TokenIds, geometry: VisionGeometry) -> list[list[SealedTokens]]:
    """Rows of the two kinds of worst micro-batch of `tokens` tokens, or of one row where that is more."""
    pictures = sum(limits.blocks) + MARKS * len(limits.blocks)
    short = pictures + PROMPT + ANSWER
    long_rows = max(1, tokens // limits.length)
    sampled = min(limits.sampled, limits.length - pictures - 1)
    made = [[_row(limits, limits.length, sampled, number, ids, geometry) for number in range(long_rows)]]
    if limits.blocks:
        made.append([_row(limits, short, ANSWER, number, ids, geometry) for number in range(max(1, tokens // short))])
    return made


def group(rows: list[SealedTokens]) -> Group:
    """The rows as one group of rollouts, which is how a learner rank is given them."""
    made = [Trajectory("worst", i, "on_demand", "", (), Outcome.OK, "", None, tokens) for i, tokens in enumerate(rows)]
    return Group("worst", 0, Sample("worst", "", b"", ()), tuple(made))


def _row(limits: Limits, length: int, sampled: int, number: int, ids: TokenIds, geometry: VisionGeometry) -> SealedTokens:
    text = next(i for i in range(3) if i not in (ids.image_pad, ids.padding))
    flat = np.full(length, text, dtype=np.int32)
    grids, pictures, at = [], [], 1
    for place, block in enumerate(limits.blocks):
        rows, columns = _sides(block)
        flat[at : at + rows * columns] = ids.image_pad
        at += rows * columns + MARKS
        grids.append((1, rows * geometry.merge, columns * geometry.merge))
        side = geometry.patch * geometry.merge
        pictures.append(Picture(_png(rows * side, columns * side), f"worst-{number}-{place}"))
    mask = np.zeros(length, dtype=bool)
    mask[length - sampled :] = True
    return SealedTokens(
        ids=flat,
        loss_mask=mask,
        logprobs=np.zeros(length, dtype=np.float32),
        versions=np.where(mask, 0, -1).astype(np.int32),
        grids=np.array(grids, dtype=np.int32).reshape(-1, 3),
        pictures=tuple(pictures),
    )


def _sides(block: int) -> tuple[int, int]:
    """Rows and columns of the largest picture of at most `block` tokens that is at most four times as wide as high."""
    heights = range(max(1, math.isqrt(block) // 2), math.isqrt(block) + 1)
    rows = max(heights, key=lambda rows: (rows * (block // rows), rows))
    return rows, block // rows


def _png(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()
