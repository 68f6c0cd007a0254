"""What lies between the matrix products of a layer, as one kernel each: norms, gates and rotary positions (torch.compile).

Promise: the same function, in fewer passes over memory. A norm reads bfloat16 and writes bfloat16 and keeps its float32 to itself, in
the backward pass, too; so a layer keeps fewer activations. Rows of ever new lengths compile nothing anew: the number of tokens is a
symbol in the kernels (`dynamic=True`). Attention and matrix products are left as they are, with one exception: the vision tower's inner
width, 3,420, is no multiple of eight, for which a Hopper card falls back to kernels three times slower; zeros fill it up to 3,424.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch.nn.functional import linear, pad, silu
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

from mmsr_ray.learner.footprint import ALIGNED  # half-precision elements that fast kernels load at once: 16 bytes

NORMS, GATES = (modeling.Qwen2_5_VLRMSNorm,), (modeling.Qwen2MLP, modeling.Qwen2_5_VLMLP)
ROTATIONS = ("apply_rotary_pos_emb", "apply_rotary_pos_emb_vision")  # functions of the module, called by its attention classes


@torch.compile(dynamic=True)
def _norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = hidden.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(hidden.dtype)


@torch.compile(dynamic=True)
def _gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return silu(gate) * up


def _norm_forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    return _norm(hidden_states, self.weight, self.variance_epsilon)


def _mlp_forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    return self.down_proj(_gate(self.gate_proj(hidden), self.up_proj(hidden)))


def _widen(mlp: Any) -> None:
    """Have a gate's products take place in the next multiple of ALIGNED, with zeros: silu(0) * 0 = 0 meets columns of zeros.

    Weights are padded in each layer's own forward pass, where ZeRO-3 has them together, and keep their shapes.
    """
    missing = -mlp.intermediate_size % ALIGNED
    if not missing:
        return

    def rows(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else pad(self.bias, (0, missing))
        return linear(hidden, pad(self.weight, (0, 0, 0, missing)), bias)

    def columns(self: Any, inner: torch.Tensor) -> torch.Tensor:
        return linear(inner, pad(self.weight, (0, missing)), self.bias)

    for layer, forward in ((mlp.gate_proj, rows), (mlp.up_proj, rows), (mlp.down_proj, columns)):
        layer.forward = MethodType(forward, layer)


def fuse(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Have a Qwen2.5-VL compute so from now on. Weights, their names and hooks on modules stay; rotations change in the whole process."""
    config: Any = model.config
    for tower in (config.text_config, config.vision_config):
        if tower.hidden_act != "silu":
            raise ValueError(f"a gate with {tower.hidden_act} cannot be fused: only SiLU is written here")
    for module in model.modules():
        if isinstance(module, NORMS):
            module.forward = MethodType(_norm_forward, module)
        elif isinstance(module, GATES):
            module.forward = MethodType(_mlp_forward, module)
            _widen(module)
    for name in ROTATIONS:
        function = getattr(modeling, name)
        if not hasattr(function, "fused"):
            compiled = torch.compile(function, dynamic=True)
            compiled.fused = True  # type: ignore[attr-defined]
            setattr(modeling, name, compiled)
