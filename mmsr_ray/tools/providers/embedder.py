"""Pictures to vectors by any vision model of transformers: CLIP, SigLIP, DINO, ViT, ConvNeXt, ...

Promise: the same picture has the same vector in every process, of length 1 and dtype float32. What a model was not
trained for is not used: a pooling layer that the checkpoint lacks would be random.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmsr_ray.tools.errors import ToolsError


class Embedder:
    """On a GPU where this process sees one. Not for several threads at a time."""

    def __init__(self, model: str) -> None:
        """`model`: folder or hub id. Raises ToolsError when it cannot be loaded."""
        self._torch: Any = importlib.import_module("torch")  # slow to import, and only the image index wants them
        transformers: Any = importlib.import_module("transformers")
        if not model:
            raise ToolsError("the image index needs a vision model: set tools.image_search.model to a folder or hub id")
        try:
            self._processor = transformers.AutoImageProcessor.from_pretrained(model)
            self._model, loaded = transformers.AutoModel.from_pretrained(model, output_loading_info=True)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ToolsError(f"the vision model {model!r} cannot be loaded ({reason}): name a folder or hub id of one") from None
        self._pooled = not any("pooler" in name for name in loaded["missing_keys"])
        self._device = "cuda" if self._torch.cuda.is_available() else "cpu"
        self._model.to(self._device).eval()

    def __call__(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures to float32 [N, D], each row of length 1."""
        with self._torch.inference_mode():
            pixels = self._processor(images=list(pictures), return_tensors="pt").to(self._device)
            vectors = self._features(pixels).float()
            return self._torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()

    def _features(self, pixels: Any) -> Any:
        """[N, D]: the picture's projection where the model has one, else its pooled output, else the mean over places."""
        if hasattr(self._model, "get_image_features"):
            output = self._model.get_image_features(**pixels)
            if self._torch.is_tensor(output):
                return output
        else:
            output = self._model(**pixels)
        if self._pooled and getattr(output, "pooler_output", None) is not None:
            return output.pooler_output.flatten(1)  # convolutional models keep [N, D, 1, 1]
        places = output.last_hidden_state
        return places.mean(1) if places.dim() == 3 else places.flatten(2).mean(2)
