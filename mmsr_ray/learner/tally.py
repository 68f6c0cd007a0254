"""Metrics of an update: summed over micro-batches, reduced over ranks once.

Promise: a skipped step counts as skipped and for nothing else.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

METRICS = ("loss", "policy_loss", "kl", "entropy", "clip_fraction", "mismatch_abs_mean", "correction_mean", "correction_masked")


class Tally:
    """Of one update."""

    def __init__(self, device: torch.device, skipped_in_a_row: int) -> None:
        self.skipped_in_a_row = skipped_in_a_row  # up to now, with those of earlier updates
        self._longest = 0
        self._sums = torch.zeros(len(METRICS), dtype=torch.float64, device=device)
        self._current = torch.zeros_like(self._sums)
        self._mismatch = torch.zeros(1, dtype=torch.float64, device=device)
        self._norms: list[float] = []
        self._skipped = 0

    def add(self, sums: dict[str, torch.Tensor], maxima: dict[str, torch.Tensor]) -> None:
        for position, name in enumerate(METRICS):
            if name in sums:
                self._current[position] += sums[name]
        if "mismatch_max" in maxima:
            self._mismatch = torch.maximum(self._mismatch, maxima["mismatch_max"].double().reshape(1))

    def step(self, norm: float, skipped: bool) -> None:
        self._skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        self._longest = max(self._longest, self.skipped_in_a_row)
        if not skipped:
            self._norms.append(norm)
            self._sums += self._current
        self._current.zero_()

    def reduce(self) -> dict[str, float]:
        """Means over the update's mini-batches. A collective."""
        dist.all_reduce(self._sums)
        dist.all_reduce(self._mismatch, op=dist.ReduceOp.MAX)
        steps = max(len(self._norms), 1)
        metrics = {name: float(value) / steps for name, value in zip(METRICS, self._sums.tolist(), strict=True)}
        metrics["mismatch_max"] = float(self._mismatch)
        metrics["grad_norm"] = sum(self._norms) / steps
        metrics |= {"skipped": float(self._skipped), "skipped_in_a_row": float(self._longest)}
        return metrics
