"""From encoded pictures to the vision tower's patches, without the processor.

Promise: `patches_of` gives exactly what transformers' Qwen2-VL image processor gives for a picture whose sides are
already multiples of patch x merge (the sealing of a transcript guarantees that), and no picture is computed twice
while it stays in the cache. The processor itself costs milliseconds of overhead per call; this is one reshape.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmsr_ray.types import Picture

CACHE_BYTES = 512 << 20


class PictureError(ValueError):
    """A picture cannot be cut into the patches that its grid announces."""


@dataclass(frozen=True, slots=True)
class VisionGeometry:
    """The numbers of `preprocessor_config.json` that decide what the vision tower sees."""

    patch: int
    merge: int
    temporal_patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float

    @staticmethod
    def load(folder: str | Path) -> VisionGeometry:
        """Read it from a model folder. Raises FileNotFoundError or KeyError when the folder has no such numbers."""
        folder = Path(folder)
        path = folder / "preprocessor_config.json"
        if path.is_file():
            raw = json.loads(path.read_text())
        else:  # transformers 5 writes everything into one file
            raw = json.loads((folder / "processor_config.json").read_text())["image_processor"]
        return VisionGeometry(
            patch=int(raw["patch_size"]),
            merge=int(raw["merge_size"]),
            temporal_patch=int(raw["temporal_patch_size"]),
            mean=tuple(raw["image_mean"]),
            std=tuple(raw["image_std"]),
            rescale=float(raw.get("rescale_factor", 1 / 255)),
        )

    @property
    def patch_values(self) -> int:
        """Numbers in one patch as the tower takes it."""
        return 3 * self.temporal_patch * self.patch * self.patch

    def dummy(self) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """A black picture of one token: float32 [merge**2, patch_values] and its grid."""
        return torch.zeros(self.merge**2, self.patch_values), (1, self.merge, self.merge)


def patches_of(pixels: np.ndarray, geometry: VisionGeometry) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Cut an RGB picture into normalised patches.

    Args:
        pixels: uint8 [height, width, 3], both sides multiples of patch x merge.

    Returns:
        float32 [patches, patch_values] in the order of the merged blocks, and the grid (1, rows, columns) in patches.

    Raises:
        PictureError: a side is no multiple.
    """
    g = geometry
    height, width = pixels.shape[:2]
    unit = g.patch * g.merge
    if height % unit or width % unit or not height or not width:
        raise PictureError(f"a picture of {width}x{height} px does not divide into units of {unit} px: resize it before sealing")
    rows, columns = height // g.patch, width // g.patch
    # the same order of operations as the processor, which fuses rescaling into mean and std
    mean = torch.tensor(g.mean) * (1.0 / g.rescale)
    std = torch.tensor(g.std) * (1.0 / g.rescale)
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float()
    image = (image - mean[:, None, None]) / std[:, None, None]
    blocks = image.reshape(3, rows // g.merge, g.merge, g.patch, columns // g.merge, g.merge, g.patch)
    blocks = blocks.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)  # block row, block column, row, column, channel, time, y, x
    blocks = blocks.expand(-1, -1, -1, -1, -1, g.temporal_patch, -1, -1)
    return blocks.reshape(rows * columns, g.patch_values), (1, rows, columns)


class PatchCache:
    """Patches by content hash, least recently used out first when the byte budget is full."""

    def __init__(self, geometry: VisionGeometry, max_bytes: int = CACHE_BYTES) -> None:
        self.geometry = geometry
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[str, tuple[torch.Tensor, tuple[int, int, int]]] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def get(self, picture: Picture) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Patches and grid of an encoded picture. Raises PictureError when it does not decode or divide."""
        entry = self._entries.get(picture.sha)
        if entry is not None:
            self.hits += 1
            self._entries.move_to_end(picture.sha)
            return entry
        self.misses += 1
        try:
            pixels = np.array(Image.open(io.BytesIO(picture.data)).convert("RGB"))
        except (OSError, Image.DecompressionBombError) as error:
            raise PictureError(f"picture {picture.sha[:12]} does not decode: {error}") from error
        entry = patches_of(pixels, self.geometry)
        self._entries[picture.sha] = entry
        self._bytes += entry[0].nbytes
        while self._bytes > self._max_bytes and len(self._entries) > 1:
            _, (dropped, _) = self._entries.popitem(last=False)
            self._bytes -= dropped.nbytes
        return entry
