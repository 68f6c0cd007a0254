"""How large a checkpoint will be, known before a model is downloaded: a disk that is too small is told before anything is paid for."""

from __future__ import annotations

from pathlib import Path

from jobs.preflight import ADAPTERS, _checkpoint
from mmsr_ray.config import Config, load
from mmsr_ray.learner.durable import FolderWriter, write_manifest


def config(*settings: str) -> Config:
    return load(None, ["model.path=Qwen/Qwen2.5-VL-3B-Instruct", "data.train=a", "data.test=b", *settings])


def test_of_a_published_size(tmp_path: Path) -> None:
    half = "learner.dtype=bfloat16"
    assert _checkpoint(config(half), tmp_path) == 3_754_622_976 * 16, "the frozen model of the KL term lies there too"
    assert _checkpoint(config(half, "grpo.loss.kl_coef=0"), tmp_path) == 3_754_622_976 * 14
    assert _checkpoint(config(half, "learner.lora.rank=16"), tmp_path) == int(3_754_622_976 * (2 + 12 * ADAPTERS))
    assert _checkpoint(config(), tmp_path) == 3_754_622_976 * 20, "float32"


def test_the_last_one_says_more_where_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step_10"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(1000))
    assert _checkpoint(config(), tmp_path) == 3_754_622_976 * 20, "one that was cut short is none"
    files = FolderWriter(folder)
    files.write(folder / "weights", bytes(1000))
    write_manifest(folder, files.report.files)
    assert _checkpoint(config(), tmp_path) == 1000
