"""From sealed token sequences to the tensors of one micro-batch, padded or packed.

Promise: padded and packed batches of the same rows give the same log-probs. Everything the model needs beyond ids and
positions is an index into the flattened rows, so the two layouts differ in shape only:

* padded: [B, L], rows padded on the right. Attention is causal, so no row ever sees its padding and no mask exists.
* packed: [1, T], rows end to end; `starts` tells attention where each begins.

A micro-batch without pictures carries one dummy picture that no token refers to: the vision tower must run in every
micro-batch of every rank, or ZeRO-3's collectives wait for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

from mmsr_ray.learner.pictures import PatchCache
from mmsr_ray.learner.positions import mrope_positions
from mmsr_ray.types import SealedTokens


class BatchError(ValueError):
    """A row does not hold together."""


@dataclass(frozen=True, slots=True)
class TokenIds:
    """The ids a batch must know; read from the model's config, never hard-coded."""

    image_pad: int
    padding: int

    def __post_init__(self) -> None:
        if self.image_pad == self.padding:
            raise BatchError("the padding id must not be the image pad: padding would count as a picture")


@dataclass(frozen=True, slots=True)
class Row:
    tokens: SealedTokens
    advantage: float


@dataclass(slots=True)
class MicroBatch:
    """B rows, S sampled tokens, M picture tokens, P patches of N distinct pictures. Indices count in the flattened [B*L]."""

    ids: torch.Tensor  # int64 [B, L] or [1, T]
    positions: torch.Tensor  # int64 [3, B, L] or [3, 1, T]
    starts: torch.Tensor | None  # int32 [B + 1], packed only
    longest: int  # tokens of the longest row
    patches: torch.Tensor  # float32 [P, patch_values]
    grids: torch.Tensor  # int64 [N, 3]
    picture_slots: torch.Tensor  # int64 [M], where a picture token sits
    picture_features: torch.Tensor  # int64 [M], which output row of the vision tower it takes
    predict_from: torch.Tensor  # int64 [S], the position whose hidden state predicts the sampled token
    targets: torch.Tensor  # int64 [S]
    rollout_logprobs: torch.Tensor  # float32 [S]
    advantages: torch.Tensor  # float32 [S]
    row_of_token: torch.Tensor  # int64 [S]
    tokens_per_row: torch.Tensor  # int64 [B]
    real_tokens: int  # without padding

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on a device; itself where it is there already."""
        if self.ids.device == device:
            return self
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        return MicroBatch(**moved)


def collate(rows: list[Row], *, packed: bool, ids: TokenIds, cache: PatchCache) -> MicroBatch:
    """Tensors of one micro-batch, on the CPU.

    An empty list is allowed and gives a batch of one padding token without sampled tokens: a rank that has nothing
    left to do still takes part in the collectives.

    Raises:
        BatchError: a row samples its first token, or its pictures do not match its grids.
        PositionError, PictureError: see there.
    """
    lengths = [row.tokens.length for row in rows] or [1]
    longest = max(lengths)
    if packed:
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        shape = (1, int(offsets[-1]))
        starts = torch.from_numpy(offsets.astype(np.int32))
    else:
        offsets = np.arange(len(lengths) + 1) * longest
        shape = (len(lengths), longest)
        starts = None
    flat_ids = np.full(shape[0] * shape[1], ids.padding, dtype=np.int64)
    flat_positions = np.zeros((3, flat_ids.shape[0]), dtype=np.int64)
    predict, sampled, row_of = [], [], []
    merge = cache.geometry.merge
    for number, row in enumerate(rows):
        tokens, at = row.tokens, int(offsets[number])
        flat_ids[at : at + tokens.length] = tokens.ids
        flat_positions[:, at : at + tokens.length] = mrope_positions(tokens.ids, tokens.grids, image_pad_id=ids.image_pad, merge=merge)
        where = np.flatnonzero(tokens.loss_mask)
        if where.size and where[0] == 0:
            raise BatchError("the first token of a sequence cannot be a sampled one: nothing predicts it")
        predict.append(where - 1 + at)
        sampled.append(where)
        row_of.append(np.full(where.size, number))
    patches, grids, slots, features = _pictures(rows, flat_ids, ids, cache)
    counts = [where.size for where in sampled] or [0]
    return MicroBatch(
        ids=torch.from_numpy(flat_ids).view(shape),
        positions=torch.from_numpy(flat_positions).view(3, *shape),
        starts=starts,
        longest=longest,
        patches=patches,
        grids=grids,
        picture_slots=slots,
        picture_features=features,
        predict_from=_join(predict, np.int64),
        targets=_join([row.tokens.ids[where] for row, where in zip(rows, sampled, strict=True)], np.int64),
        rollout_logprobs=_join([_logprobs(row)[where] for row, where in zip(rows, sampled, strict=True)], np.float32),
        advantages=_join([np.full(where.size, row.advantage) for row, where in zip(rows, sampled, strict=True)], np.float32),
        row_of_token=_join(row_of, np.int64),
        tokens_per_row=torch.tensor(counts, dtype=torch.int64),
        real_tokens=sum(row.tokens.length for row in rows),
    )


def _logprobs(row: Row) -> np.ndarray:
    if row.tokens.logprobs is None:
        raise BatchError("a sequence was sampled without log-probs: it cannot be learned from")
    return row.tokens.logprobs


def _pictures(rows: list[Row], flat_ids: np.ndarray, ids: TokenIds, cache: PatchCache) -> tuple[torch.Tensor, ...]:
    """Distinct pictures of the batch (each goes through the tower once) and which feature each picture token takes."""
    merge_area = cache.geometry.merge**2
    first_feature: dict[str, int] = {}
    patches: list[torch.Tensor] = []
    grids: list[tuple[int, int, int]] = []
    features: list[np.ndarray] = []
    count = 0
    for number, row in enumerate(rows):
        if len(row.tokens.pictures) != len(row.tokens.grids):
            raise BatchError(f"row {number} has {len(row.tokens.pictures)} pictures for {len(row.tokens.grids)} grids")
        for picture, grid in zip(row.tokens.pictures, row.tokens.grids, strict=True):
            cut, cut_grid = cache.get(picture)
            if cut_grid != tuple(int(n) for n in grid):
                raise BatchError(f"picture {picture.sha[:12]} has grid {cut_grid}, its sequence says {tuple(grid)}")
            size = cut.shape[0] // merge_area
            if picture.sha not in first_feature:
                first_feature[picture.sha] = count
                patches.append(cut)
                grids.append(cut_grid)
                count += size
            start = first_feature[picture.sha]
            features.append(np.arange(start, start + size))
    if not patches:
        dummy, grid = cache.geometry.dummy()
        patches, grids = [dummy], [grid]
    # in order of rows, then of appearance: the same order as `features`
    slots = np.flatnonzero(flat_ids == ids.image_pad)
    return torch.cat(patches), torch.tensor(grids, dtype=torch.int64), torch.from_numpy(slots), _join(features, np.int64)


def _join(parts: list[np.ndarray], dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype))
