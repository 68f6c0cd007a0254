"""Three-dimensional rotary positions (mRoPE) of a sealed sequence.

Promise: the positions depend on the token ids and the picture grids alone, and equal those that transformers'
`Qwen2_5_VLModel.get_rope_index` and vLLM give to the same sequence (arXiv 2502.13923, section 2.1.3).
"""

from __future__ import annotations

import numpy as np


class PositionError(ValueError):
    """The image pads of a sequence do not match its grids."""


def mrope_positions(ids: np.ndarray, grids: np.ndarray, *, image_pad_id: int, merge: int) -> np.ndarray:
    """Temporal, height and width position of every token.

    Args:
        ids: integer [L], expanded: one image pad per merged patch.
        grids: integer [N, 3], (t, h, w) in patches, one row per picture in order of appearance.
        image_pad_id: the id that stands for a picture's tokens.
        merge: patches merged into one token along each side.

    Returns:
        int64 [3, L]. Text advances all three by one; a picture's token gets (start + t, start + row, start + column),
        and the text behind it goes on at the largest of them plus one.

    Raises:
        PositionError: pads and grids disagree.
    """
    ids = np.asarray(ids)
    length = ids.shape[0]
    pad_at = np.flatnonzero(ids == image_pad_id)
    grids = np.asarray(grids, dtype=np.int64).reshape(-1, 3)
    merged = grids // np.array([1, merge, merge])
    counts = merged.prod(axis=1)
    if int(counts.sum()) != pad_at.shape[0]:
        raise PositionError(f"{pad_at.shape[0]} image pads but the {len(grids)} grids need {int(counts.sum())}")

    positions = np.empty((3, length), dtype=np.int64)
    done, current, used = 0, 0, 0  # tokens done, next position, pads used
    for (t, h, w), count in zip(merged, counts, strict=True):
        start = int(pad_at[used])
        if int(pad_at[used + count - 1]) != start + count - 1:
            raise PositionError(f"the pads of the picture at token {start} are not contiguous: its grid needs {count} in a row")
        text = start - done
        positions[:, done:start] = np.arange(current, current + text)
        current += text
        positions[:, start : start + count] = current + np.indices((t, h, w)).reshape(3, -1)
        current += int(max(t, h, w))
        done, used = start + int(count), used + int(count)
    positions[:, done:] = np.arange(current, current + length - done)
    return positions
