"""Estimates of KL(policy || reference) from sampled tokens, and their gradients. Pure torch.

Letters cite the papers listed in `objective`.
"""

from __future__ import annotations

import torch

from mmsr_ray.learner.objective import KL, KLGradient
from mmsr_ray.learner.ratios import LOG_RATIO_LIMIT


def kl_per_token(logprobs: torch.Tensor, reference: torch.Tensor, old: torch.Tensor, kind: KL, gradient: KLGradient) -> torch.Tensor:
    """float32 [S], natural units; with gradient.

    The value is k1, k2 or k3 (K); k3 is non-negative and the one of G, equation 4. `direct` is its own gradient.
    `unbiased` is that of the KL divergence itself, rho (log p - log q) grad log p with rho = p / old detached: the
    gradient of rho k3 (V), which on fresh samples is the one of k2.
    """
    difference = (reference - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    value = _VALUES[kind](difference)
    if gradient is KLGradient.DIRECT:
        return value
    rho = (logprobs - old).detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    carrier = rho * k2(difference)
    return value.detach() + carrier - carrier.detach()


def k1(difference: torch.Tensor) -> torch.Tensor:
    """log p - log q, from `difference` = log q - log p."""
    return -difference


def k2(difference: torch.Tensor) -> torch.Tensor:
    return 0.5 * difference.square()


def k3(difference: torch.Tensor) -> torch.Tensor:
    return torch.expm1(difference) - difference


_VALUES = {KL.K1: k1, KL.K2: k2, KL.K3: k3}
