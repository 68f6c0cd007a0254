from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from mmsr_ray.learner.model import Policy
from mmsr_ray.learner.positions import PositionError, mrope_positions
from tests.learner.conftest import IMAGE_PAD, make_row

SHAPES = [(), ((56, 56, 0),), ((112, 56, 0), (28, 28, 1), (28, 28, 1)), ((56, 140, 0), (168, 28, 1), (28, 28, 2), (84, 84, 3))]


@pytest.mark.parametrize("pictures", SHAPES)
def test_equals_transformers(policy: Policy, pictures: tuple) -> None:
    tokens = make_row(1, length=70, pictures=pictures).tokens
    ids = torch.from_numpy(tokens.ids.astype(np.int64))[None]
    grids = torch.from_numpy(tokens.grids.astype(np.int64)) if len(tokens.grids) else None
    expected, _ = cast(Any, policy.hf.model).get_rope_index(
        input_ids=ids, mm_token_type_ids=(ids == IMAGE_PAD).int(), image_grid_thw=grids, attention_mask=torch.ones_like(ids)
    )
    found = mrope_positions(tokens.ids, tokens.grids, image_pad_id=IMAGE_PAD, merge=2)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected[:, 0].numpy())


def test_two_pictures_side_by_side_and_at_the_ends() -> None:
    ids = np.array([IMAGE_PAD] * 2 + [IMAGE_PAD] * 4)
    found = mrope_positions(ids, np.array([[1, 2, 4], [1, 4, 4]]), image_pad_id=IMAGE_PAD, merge=2)
    np.testing.assert_array_equal(found, [[0, 0, 2, 2, 2, 2], [0, 0, 2, 2, 3, 3], [0, 1, 2, 3, 2, 3]])


def test_disagreement_is_an_error() -> None:
    with pytest.raises(PositionError, match="1 image pads"):
        mrope_positions(np.array([1, IMAGE_PAD, 2]), np.array([[1, 4, 4]]), image_pad_id=IMAGE_PAD, merge=2)
    with pytest.raises(PositionError, match="not contiguous"):
        mrope_positions(np.array([IMAGE_PAD, 1, IMAGE_PAD, 1]), np.array([[1, 2, 4]]), image_pad_id=IMAGE_PAD, merge=2)
