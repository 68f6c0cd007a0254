"""Attention over rows of unequal length, for the text tower (causal) and the vision tower (full).

Promise: a token attends within its own sequence only, and no attention mask is ever built. Registered with
transformers under names that contain "flash", because transformers then hands over `cu_seq_lens_q` in both towers instead of
looping over the pieces in Python itself.

Kernels for the packed layout on a GPU in half precision; all give the same numbers (`use`):
varlen: torch's flash attention, keys and values repeated for every head. The default. varlen_gqa: the same without the repetition; on an
H200 it scored the same to the last bit and was no faster. flash_attn: that package's. sdpa: rows of one length at a time, which is what
everything else (float32, a CPU) runs through. The last two were never run on a GPU.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

DEFAULT = "varlen"
KERNELS = ("varlen", "varlen_gqa", "flash_attn", "sdpa")
NAME = "mmsr_flash_{kernel}"
TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | torch.Tensor | None = None,
    kernel: str = DEFAULT,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The signature transformers calls: query [B, H, L, D], key and value [B, H_kv, L, D] -> [B, L, H, D].

    Without `cu_seq_lens_q` every row of the batch is one sequence; with it (int32 [n + 1]) the batch is one row of n
    sequences end to end.
    """
    if attention_mask is not None:
        raise ValueError("rows are padded on the right or packed: an attention mask has no place here")
    causal = bool(module.is_causal if is_causal is None else is_causal)
    if cu_seq_lens_q is None:
        out = _dense(query, key, value, scaling, causal)
        return out.transpose(1, 2), None
    if kernel != "sdpa" and query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        out = _fused(kernel, query, key, value, scaling, causal, cu_seq_lens_q, max_length_q)
        return out.unsqueeze(0), None
    return _grouped(query, key, value, scaling, causal, cu_seq_lens_q), None


def _dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, causal: bool) -> torch.Tensor:
    grouped = key.shape[1] != query.shape[1]
    return scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scaling, enable_gqa=grouped)


def _fused(
    kernel: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    causal: bool,
    cu: torch.Tensor,
    longest: int | torch.Tensor | None,
) -> torch.Tensor:
    """Flash attention over the packed row: [1, H, T, D] -> [T, H, D]."""
    cu = cu.to(device=query.device, dtype=torch.int32)
    q, k, v = (x.squeeze(0).transpose(0, 1).contiguous() for x in (query, key, value))
    out = _FUSED[kernel](q, k, v, cu, _longest(cu, longest), scaling, causal)
    return out[0] if isinstance(out, tuple) else out


def _longest(cu: torch.Tensor, given: int | torch.Tensor | None) -> int:
    """Of the pieces. The vision tower gives it as a tensor in every block: read once a pass, for each reading waits for the GPU."""
    if isinstance(given, int):
        return given
    known = vars(cu)
    if "longest_piece" not in known:
        known["longest_piece"] = int((cu[1:] - cu[:-1]).max())
    return known["longest_piece"]


def _varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu: torch.Tensor, longest: int, scale: float | None, causal: bool) -> Any:
    if k.shape[1] != q.shape[1]:  # torch 2.11 has no enable_gqa here
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return varlen_attn(q, k, v, cu, cu, longest, longest, scale=scale, window_size=(-1, 0) if causal else (-1, -1))


def _varlen_gqa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu: torch.Tensor, longest: int, scale: float | None, causal: bool
) -> Any:
    grouped: dict[str, Any] = (
        {"enable_gqa": True} if TAKES_GROUPS and k.shape[1] != q.shape[1] else {}
    )  # torch 2.11 has groups without the word
    return varlen_attn(q, k, v, cu, cu, longest, longest, scale=scale, window_size=(-1, 0) if causal else (-1, -1), **grouped)


def _flash_attn(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu: torch.Tensor, longest: int, scale: float | None, causal: bool
) -> Any:
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]  # a package of its own, built for CUDA

    return flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, softmax_scale=scale, causal=causal)


_FUSED: dict[str, Callable[..., Any]] = {"varlen": _varlen, "varlen_gqa": _varlen_gqa, "flash_attn": _flash_attn}


def missing(kernel: str, device: torch.device) -> str:
    """Why a kernel cannot run on a device, in a few words; "" where it can."""
    if kernel != "sdpa" and device.type != "cuda":
        return "needs a GPU"
    if kernel == "flash_attn" and find_spec("flash_attn") is None:
        return "the package flash_attn is not installed"
    return ""


def _grouped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, causal: bool, cu: torch.Tensor
) -> torch.Tensor:
    """Sequences of one length at a time, as a batch: few calls where lengths repeat. [1, H, T, D] -> [1, T, H, D]."""
    bounds = cu.tolist()
    of_length: dict[int, list[int]] = {}
    for start, end in itertools.pairwise(bounds):
        if end > start:
            of_length.setdefault(end - start, []).append(start)
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # [T, H, D]
    if len(of_length) == 1:  # contiguous and equal: a view is enough
        ((length, starts),) = of_length.items()
        a, b, c = (x.unflatten(0, (len(starts), length)).transpose(1, 2) for x in (q, k, v))
        return _dense(a, b, c, scaling, causal).transpose(1, 2).flatten(0, 1).unsqueeze(0)
    pieces, order = [], []
    for length, starts in of_length.items():
        index = (torch.tensor(starts)[:, None] + torch.arange(length)).to(q.device)
        a, b, c = (x[index.flatten()].unflatten(0, index.shape).transpose(1, 2) for x in (q, k, v))
        part = _dense(a, b, c, scaling, causal)
        pieces.append(part.transpose(1, 2).flatten(0, 1))
        order.append(index.flatten())
    back = torch.argsort(torch.cat(order))
    return torch.cat(pieces)[back].unsqueeze(0)


def use(model: torch.nn.Module, kernel: str = DEFAULT) -> None:
    """Make a transformers model use `attend` with a kernel in all its towers."""
    name = NAME.format(kernel=kernel)
    ALL_ATTENTION_FUNCTIONS.register(name, partial(attend, kernel=kernel))
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = name
