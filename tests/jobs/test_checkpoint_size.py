"""How large a checkpoint will be, known before a model is downloaded: a disk that is too small is told before anything is paid for."""

from __future__ import annotations

from pathlib import Path

from jobs.preflight import ADAPTERS, _checkpoint
from mmsr_ray.config import Config, load


def config(*settings: str) -> Config:
    return load(None, ["model.path=Qwen/Qwen2.5-VL-3B-Instruct", "data.train=a", "data.test=b", *settings])


def test_of_a_published_size(tmp_path: Path) -> None:
    half = "learner.dtype=bfloat16"
    assert _checkpoint(config(half), tmp_path) == 3_754_622_976 * 16, "the frozen model of the KL term lies there too"
    assert _checkpoint(config(half, "grpo.loss.kl_coef=0"), tmp_path) == 3_754_622_976 * 14
    assert _checkpoint(config(half, "learner.lora.rank=16"), tmp_path) == int(3_754_622_976 * (2 + 12 * ADAPTERS))
    assert _checkpoint(config(), tmp_path) == 3_754_622_976 * 20, "float32"


def test_the_last_one_says_more(tmp_path: Path) -> None:
    """Nothing else is looked at where there is one; an empty folder is none."""
    (tmp_path / "checkpoints" / "step_10").mkdir(parents=True)
    assert _checkpoint(config(), tmp_path) == 3_754_622_976 * 20
