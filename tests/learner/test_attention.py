"""The packed kernels' way in: what they are handed, with the GPU's kernels replaced by a loop over the pieces."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mmsr_ray.learner import attention

PIECES = [3, 7, 1, 5]


def by_pieces(q: Any, k: Any, v: Any, cu: Any, cu_k: Any, longest: int, longest_k: int, causal: bool, gqa: bool, scale: Any) -> Any:
    """Flash attention as its documentation has it: [T, H, D] in and out."""
    assert q.is_contiguous() and k.is_contiguous() and v.is_contiguous() and cu.dtype == torch.int32
    assert longest == longest_k == max(PIECES) and torch.equal(cu, cu_k)
    assert gqa or k.shape[1] == q.shape[1], "keys and values must be repeated"
    made = []
    for start, end in itertools.pairwise(cu.tolist()):
        a, b, c = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        made.append(scaled_dot_product_attention(a, b, c, is_causal=causal, scale=scale, enable_gqa=gqa)[0].transpose(0, 1))
    return torch.cat(made)


def varlen(
    q: Any, k: Any, v: Any, cu: Any, cu_k: Any, longest: int, longest_k: int, *, scale: Any, window_size: Any, enable_gqa: bool = False
) -> Any:
    return by_pieces(q, k, v, cu, cu_k, longest, longest_k, window_size == (-1, 0), enable_gqa, scale)


def flash(q: Any, k: Any, v: Any, cu: Any, cu_k: Any, longest: int, longest_k: int, *, softmax_scale: Any, causal: bool) -> Any:
    return by_pieces(q, k, v, cu, cu_k, longest, longest_k, causal, True, softmax_scale)


@pytest.mark.parametrize("kernel", ["varlen", "varlen_gqa", "flash_attn"])
@pytest.mark.parametrize("causal", [True, False])
def test_every_kernel_gives_what_the_grouped_path_gives(kernel: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", varlen)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=flash))
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, sum(PIECES), 8) for heads in (4, 2, 2))
    cu = torch.tensor([0, *itertools.accumulate(PIECES)], dtype=torch.int32)
    expected, _ = attention.attend(SimpleNamespace(), q, k, v, None, 0.3, is_causal=causal, cu_seq_lens_q=cu)  # type: ignore[arg-type]
    for given in (max(PIECES), torch.tensor(max(PIECES)), None):
        found = attention._fused(kernel, q, k, v, 0.3, causal, cu, given)
        torch.testing.assert_close(found[None], expected)


def test_what_is_missing_is_said() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert attention.missing("sdpa", cpu) == "" and attention.missing("varlen", cpu) == "needs a GPU"
    assert attention.missing("varlen", cuda) == ""
