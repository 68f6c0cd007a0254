"""What a Qwen2.5-VL weighs: parameters, activations, logits, cache. Pure arithmetic over the numbers of its config.json.

Promise: `parameters` is exact. The bytes of a layer are those that autograd keeps for its backward pass, counted on real layers
(`tests/learner/test_footprint.py` counts them again); what a kernel needs for moments is a bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LOGIT_TENSORS = 6  # of a chunk's size in float32: logits (twice in half precision), log-probs, two gradients, entropy's product
HALF = 2  # bytes of bfloat16
ALIGNED = 8  # elements: what `fused` widens the tower's gates to


@dataclass(frozen=True, slots=True)
class Footprint:
    """The numbers that decide; counts of parameters follow from them."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    width: int  # of the vision tower, as all below
    depth: int
    vision_intermediate: int
    vision_heads: int
    merge: int
    patch_values: int
    out: int

    @staticmethod
    def of(config: Mapping[str, Any]) -> Footprint:
        """From the dictionary of a config.json. Raises KeyError where it lacks a number."""
        text: Mapping[str, Any] = config.get("text_config") or config  # older files have the language model's numbers on top
        vision: Mapping[str, Any] = config["vision_config"]
        return Footprint(
            hidden=text["hidden_size"],
            intermediate=text["intermediate_size"],
            layers=text["num_hidden_layers"],
            heads=text["num_attention_heads"],
            kv_heads=text["num_key_value_heads"],
            vocabulary=text["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            width=vision["hidden_size"],
            depth=vision["depth"],
            vision_intermediate=vision["intermediate_size"],
            vision_heads=vision["num_heads"],
            merge=vision["spatial_merge_size"],
            patch_values=3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2,
            out=vision["out_hidden_size"],
        )

    # ------------------------------------------------------------------------------------------------ parameters

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head

    @property
    def layer(self) -> int:
        """Parameters of one layer of the language model."""
        attention = 2 * self.hidden * self.hidden + self.hidden + 2 * self.kv_width * (self.hidden + 1)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def vision(self) -> int:
        """Parameters of the vision tower."""
        width, merged = self.width, self.merge**2 * self.width
        block = 4 * width * (width + 1) + 3 * width * self.vision_intermediate + 2 * self.vision_intermediate + width + 2 * width
        merger = width + merged * (merged + 1) + self.out * (merged + 1)
        return self.patch_values * width + self.depth * block + merger

    @property
    def parameters(self) -> int:
        """Of the whole model; a tied head counts once."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer + self.hidden + self.vision

    def adapters(self, rank: int, targets: Sequence[str]) -> int:
        """Parameters of low-rank adapters on those layers of the language model."""
        hidden, inner, kv = self.hidden, self.intermediate, self.kv_width
        sides = {
            "q_proj": 2 * hidden, "o_proj": 2 * hidden, "k_proj": hidden + kv, "v_proj": hidden + kv,
            "gate_proj": hidden + inner, "up_proj": hidden + inner, "down_proj": hidden + inner,
        }  # fmt: skip
        return self.layers * rank * sum(sides.get(target, 0) for target in targets)

    # ------------------------------------------------------------------------------------------------ activations

    def layer_bytes(self, itemsize: int = HALF, *, repeated: bool = False, fused: bool = False) -> int:
        """A text token keeps so much of one layer for its backward pass. `repeated`: keys and values for every head, as packed on a GPU.

        Norms compute in float32 whatever the dtype and keep it: half of the first term. `fused` ones keep their input alone,
        and a gate its two factors and their product.
        """
        keys = 2 * (self.hidden if repeated else self.kv_width)
        inner, wide = (3, 0) if fused else (4, 8)
        return itemsize * (inner * self.intermediate + 6 * self.hidden + keys) + wide * self.hidden + 4 * self.heads + 8

    def block_bytes(self, itemsize: int = HALF, *, fused: bool = False) -> int:
        """A patch keeps so much of one block of the vision tower."""
        inner, wide = (3, 4) if fused else (4, 12)
        return itemsize * (inner * self._tower_inner(fused) + 8 * self.width) + wide * self.width + 4 * self.vision_heads + 8

    def widened_bytes(self, itemsize: int = HALF, *, fused: bool = False) -> int:
        """A block keeps so much whatever its patches: the copies of its weights that `fused` fills up with zeros."""
        inner = self._tower_inner(fused)
        return itemsize * 3 * self.width * inner if inner != self.vision_intermediate else 0

    def _tower_inner(self, fused: bool) -> int:
        return self.vision_intermediate + (-self.vision_intermediate % ALIGNED if fused else 0)

    def activations(
        self,
        tokens: int,
        patches: int,
        sampled: int,
        *,
        itemsize: int = HALF,
        checkpointing: bool,
        plain_layers: int = 0,
        fused: bool = False,
        chunk: int,
    ) -> int:
        """Peak of forward and backward of a micro-batch beside weights and gradients.

        With checkpointing the inputs of all layers stay, and one layer at a time is computed again and differentiated; its
        gradients are three tensors of the inner width and four of the outer. `plain_layers` are not checkpointed.
        `chunk`: bytes of float32 logits that are alive at once.
        """
        layer, block = self.layer_bytes(itemsize, repeated=True, fused=fused), self.block_bytes(itemsize, fused=fused)
        plain = min(plain_layers, self.layers) if checkpointing else self.layers
        held = tokens * (plain * layer + (self.layers - plain) * itemsize * self.hidden)
        held += patches * self.depth * (itemsize * self.width if checkpointing else block) + 4 * patches * self.patch_values
        held += self.widened_bytes(itemsize, fused=fused) * (1 if checkpointing else self.depth)
        inner = tokens * (layer * (plain < self.layers) + itemsize * (3 * self.intermediate + 4 * self.hidden))
        tower = patches * (block * checkpointing + itemsize * (3 * self.vision_intermediate + 4 * self.width))
        logits = LOGIT_TENSORS * min(chunk, 4 * sampled * self.vocabulary) + itemsize * self.vocabulary * self.hidden
        return held + max(inner, tower, logits)

    def scoring(self, tokens: int, patches: int, *, itemsize: int = HALF, chunk: int) -> int:
        """Peak of a forward pass without gradient: one layer's tensors, nothing kept."""
        inner = tokens * itemsize * (3 * self.intermediate + 8 * self.hidden)
        tower = patches * (itemsize * (3 * self.vision_intermediate + 8 * self.width) + 4 * self.patch_values)
        return max(inner, tower, 3 * chunk)

    # ------------------------------------------------------------------------------------------------ cache

    def cache_bytes(self, tensor_parallel: int = 1, itemsize: int = HALF) -> int:
        """Of one token in an engine's cache, on one of the cards that share the engine."""
        return 2 * self.layers * max(1, self.kv_heads // tensor_parallel) * self.head * itemsize
