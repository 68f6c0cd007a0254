"""Low-rank adapters on their way to an engine, and what it makes of them. Pure torch; no Ray, no vLLM.

Promise: learner and engine merge by one function in one precision, so an engine that is sent adapters computes with the
weights that it would have been sent merged. An adapter travels as three tensors: A [r, in], B [out, r], and its scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

import torch

A, B, SCALE = ".lora_A.weight", ".lora_B.weight", ".lora_scale"
WEIGHT, BIAS = ".weight", ".bias"


class AdapterError(ValueError):
    """What arrived is not a set of adapters for this model."""


class Adapter(NamedTuple):
    """Of one linear layer. `a` and `b` are in the dtype that the learner computes in."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def merged(self, base: torch.Tensor) -> torch.Tensor:
        """base + scale * B A in the learner's dtype; added in float32, for in bfloat16 small deltas would be rounded away."""
        delta = (self.b.float() @ self.a.float()) * self.scale
        return (base.to(self.a.dtype).float() + delta).to(self.a.dtype)

    def named(self, module: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The three tensors to publish. `module` is the checkpoint's name of the layer, without `.weight`."""
        yield module + A, self.a
        yield module + B, self.b
        yield module + SCALE, torch.tensor(self.scale, dtype=torch.float64)


def is_adapter(name: str) -> bool:
    """Whether a published name is that of an adapter's tensor."""
    return name.endswith((A, B, SCALE))


def collect(tensors: Mapping[str, torch.Tensor]) -> dict[str, Adapter]:
    """Adapters by module. Raises AdapterError where one is incomplete or something else came along."""
    modules = {name.removesuffix(end) for name in tensors for end in (A, B, SCALE) if name.endswith(end)}
    wanted = {module + end for module in modules for end in (A, B, SCALE)}
    if wanted != set(tensors):
        odd = sorted(wanted ^ set(tensors))
        raise AdapterError(f"{len(odd)} tensors are missing or are of no adapter, first {odd[0]}")
    return {module: Adapter(tensors[module + A], tensors[module + B], float(tensors[module + SCALE])) for module in sorted(modules)}


def expected(touched: Set[str], known: Set[str]) -> set[str]:
    """Modules that must have an adapter if `touched` have one: all of the same names in the same tower.

    `known` are the checkpoint's tensors; all names are in one spelling.
    """
    kinds = {(module.split(".", 1)[0], module.rsplit(".", 1)[-1]) for module in touched}
    modules = {name.removesuffix(WEIGHT) for name in known if name.endswith(WEIGHT)}
    return {module for module in modules if (module.split(".", 1)[0], module.rsplit(".", 1)[-1]) in kinds}


def layers_to_reload(touched: Iterable[str], known: Set[str], packed: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The engine's layers in which a module lies, and every tensor of the checkpoint that each of them is made of.

    An engine fuses layers (`packed`: qkv_proj of q_proj, k_proj and v_proj) and reloads a layer whole or not at all.
    """
    whole_of = {part: whole for whole, parts in packed.items() for part in parts}
    layers: dict[str, list[str]] = {}
    for module in sorted(touched):
        parent, _, leaf = module.rpartition(".")
        whole = whole_of.get(leaf, leaf)
        stem = f"{parent}." if parent else ""
        parts = packed.get(whole, [leaf])
        layers[stem + whole] = [name for part in parts for end in (WEIGHT, BIAS) if (name := stem + part + end) in known]
    return layers
