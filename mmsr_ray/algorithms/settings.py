"""The settings of supervised training: the warm start of a run, and the SFT baseline (spec §4.3)."""

from __future__ import annotations

from dataclasses import dataclass

SCHEDULES = ("sigmoid", "constant", "cosine")


@dataclass
class SFTConfig:
    enabled: bool = False  # a warm start before reinforcement
    demonstrations: str = ""  # trajectories of evaluations or runs (parquet file, folder or glob); "": Atlas makes them
    steps: int = 400
    epochs: float = 0.0  # instead of steps, where above 0
    batch_size: int = 32
    lr: float = 1e-5
    warmup_ratio: float = 0.1
    lr_schedule: str = "cosine"  # sigmoid | constant | cosine
    cache_dir: str = "runs/cache"


def complaint(c: SFTConfig, atlas: bool) -> str:
    """What cannot be, in one sentence; "" for nothing. `atlas`: there is a world that can make demonstrations."""
    if c.steps < 1 or c.batch_size < 1 or c.epochs < 0:
        return "sft.steps and sft.batch_size must be at least 1, sft.epochs 0 (as sft.steps says) or more"
    if not 0 <= c.warmup_ratio <= 1 or c.lr <= 0:
        return "sft.lr must be above 0 and sft.warmup_ratio between 0 and 1"
    if c.lr_schedule not in SCHEDULES:
        return f"sft.lr_schedule={c.lr_schedule!r}: choose {', '.join(SCHEDULES)}"
    if c.enabled and not c.demonstrations and not atlas:
        return "sft.enabled needs sft.demonstrations: the trajectories/ of an evaluation of the teacher by jobs/evaluate.py"
    return ""
