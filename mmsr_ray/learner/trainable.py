"""Which parameters learn: all of them, all but the vision tower's, or low-rank adapters on the language model.

Promise: whatever learns, the policy's weights leave this room whole and under the names of the model's checkpoint, adapters
merged (`checkpoint_weights`), or as adapters by those names (`adapters`). Exports and checkpoints for others never see an adapter.

With adapters the frozen model of the KL term is the policy with its adapters off (`reference_mode`): no second model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmsr_ray.learner.model import Policy
from mmsr_ray.learner.settings import LearnerConfig
from mmsr_ray.weights.adapters import WEIGHT, Adapter

ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the checkpoint and the parameters it is made of: its own, or a frozen one with an adapter on it."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    adapted: nn.Module | None = None  # peft's layer, where there is an adapter

    def value(self) -> torch.Tensor:
        """The tensor as the policy computes with it. Under ZeRO-3 its parameters must be gathered."""
        own = self.parameters[0].detach()
        return own if self.adapted is None else adapter_of(self.adapted).merged(own)


def adapter_of(layer: nn.Module) -> Adapter:
    """The adapter of one of peft's layers, as it is now. Under ZeRO-3 its parameters must be gathered."""
    own: Any = layer
    return Adapter(own.lora_A[ADAPTER].weight.detach(), own.lora_B[ADAPTER].weight.detach(), float(own.scaling[ADAPTER]))


def choose(policy: Policy, config: LearnerConfig) -> None:
    """Freeze and adapt `policy` in place, as `config` asks. Call it before the optimiser is made.

    Raises ValueError when no module carries a name of `lora.targets`.
    """
    if config.lora.rank > 0:
        _adapt(policy, config)
    elif config.freeze_vision:
        policy.hf.model.visual.requires_grad_(False)


def _adapt(policy: Policy, config: LearnerConfig) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # only adapters need it, and it takes its time

    lora = config.lora
    names = [
        name
        for name, module in policy.hf.model.language_model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in lora.targets
    ]
    if not names:
        raise ValueError(f"learner.lora.targets={list(lora.targets)}: the model has no layer of that name; q_proj and v_proj are usual")
    policy.requires_grad_(False)
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=names, bias="none")
    inject_adapter_in_model(settings, policy.hf.model.language_model, ADAPTER)


def adapted_layers(policy: nn.Module) -> list[nn.Module]:
    """peft's layers in the policy; empty without adapters."""
    return [module for module in policy.modules() if hasattr(module, "lora_A")]


def trained_parameters(policy: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


def checkpoint_weights(policy: Policy) -> Iterator[Weight]:
    """Every tensor of the model's checkpoint, by its name there, in the model's order; a tied head appears once."""
    layers = {f"{name}.base_layer.weight": module for name, module in policy.hf.named_modules() if hasattr(module, "lora_A")}
    for name, parameter in policy.hf.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        layer = layers.get(name)
        own = name.replace(".base_layer.", ".")
        yield Weight(own, (parameter,) if layer is None else (parameter, *_adapter(layer)), layer)


def adapters(policy: Policy) -> Iterator[tuple[str, nn.Module, Sequence[nn.Parameter]]]:
    """Every adapted layer in the model's order: its name in the checkpoint, peft's layer, and the adapter's parameters."""
    for weight in checkpoint_weights(policy):
        if weight.adapted is not None:
            yield weight.name.removesuffix(WEIGHT), weight.adapted, weight.parameters[1:]


def _adapter(layer: nn.Module) -> Sequence[nn.Parameter]:
    return [parameter for name, parameter in layer.named_parameters() if name.startswith(("lora_A.", "lora_B."))]


@contextmanager
def reference_mode(policy: nn.Module) -> Iterator[None]:
    """Inside, the policy is the model it started from: its adapters are off."""
    layers = adapted_layers(policy)
    for layer in layers:
        layer.enable_adapters(False)  # type: ignore[operator]
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)  # type: ignore[operator]
