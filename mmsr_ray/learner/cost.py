"""What a row costs the learner, in the currency of text tokens. Pure.

Promise: the estimate counts floating-point operations of forward and backward by the model's shape, so it knows that a
thumbnail of a few tokens goes through the vision tower as four patches a token, and that attention grows with the square
of a row. It weighs rows against each other; it does not predict seconds.

Matrix products count 2 operations per weight and token in a forward pass, attention 4 x width per pair that sees each other
(half of all pairs under a causal mask). Backward costs twice the forward where weights learn, once where only what lies
below them does, nothing where nothing below learns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmsr_ray.learner.settings import LearnerConfig


@dataclass(frozen=True, slots=True)
class CostModel:
    """Costs relative to one text token without its attention. The default knows tokens only."""

    pair: float = 0.0  # of two tokens of a row that see each other in the language model
    patch: float = 0.0  # of one patch in the vision tower, window attention and merger included
    patch_pair: float = 0.0  # of two patches of a picture in the layers with full attention

    def row(self, length: int, patches: int = 0, pictures: int = 0) -> float:
        """Of one row: `length` tokens, `pictures` of `patches` patches in all, taken as equally large."""
        text = length + self.pair * length * length / 2
        return text + self.patch * patches + self.patch_pair * patches * patches / max(pictures, 1)

    @staticmethod
    def of(config: Mapping[str, Any], learner: LearnerConfig) -> CostModel:
        """From the dictionary of a Qwen2.5-VL's config.json. Raises KeyError where it lacks a number."""
        text: Mapping[str, Any] = config.get("text_config") or config  # older files have the language model's numbers on top
        vision: Mapping[str, Any] = config["vision_config"]
        hidden, layers, heads = text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"]
        projections = hidden * (2 * hidden + 2 * text["num_key_value_heads"] * (hidden // heads))
        language = _passes(learner, learns=learner.lora.rank == 0, below=True)
        token = 2 * layers * (projections + 3 * hidden * text["intermediate_size"]) * language
        width, depth = vision["hidden_size"], vision["depth"]
        full = len(vision["fullatt_block_indexes"])
        learns = learner.lora.rank == 0 and not learner.freeze_vision
        tower = _passes(learner, learns=learns, below=learns)
        area = vision["spatial_merge_size"] ** 2
        merged = area * width
        linear = depth * (4 * width * width + 3 * width * vision["intermediate_size"]) + merged * (merged + hidden) / area
        linear += 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2 * width
        window = (vision["window_size"] // vision["patch_size"]) ** 2
        return CostModel(
            pair=4 * hidden * layers * language / token,
            patch=(2 * linear + 4 * width * (depth - full) * window) * tower / token,
            patch_pair=4 * width * full * tower / token,
        )


TOKENS_ONLY = CostModel()


def _passes(learner: LearnerConfig, *, learns: bool, below: bool) -> int:
    """Forward passes that forward and backward together are worth."""
    if not below:
        return 1
    return 1 + (2 if learns else 1) + (1 if learner.gradient_checkpointing else 0)
