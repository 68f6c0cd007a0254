"""The made-up set of the growth benchmark is a set that the product reads."""

from __future__ import annotations

from pathlib import Path

from jobs.benchmark_growth import write_prompts
from mmsr_ray.config import DataConfig
from mmsr_ray.data.reader import read_samples


def test_written_prompts_are_read_back_each_with_its_picture(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.parquet", 70)
    samples = read_samples(str(tmp_path), DataConfig(train="", test=""))
    assert [sample.uid for sample in samples] == [f"q{n}" for n in range(70)]
    assert samples[69].answers == ("name 69",) and samples[69].image.startswith(b"\x89PNG")
