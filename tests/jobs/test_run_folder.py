from __future__ import annotations

import io
from pathlib import Path

import pytest

from jobs.run_folder import RunFolder, with_absolute_paths
from mmsr_ray.config import Config, ConfigError, DataConfig, ModelConfig, RunConfig
from mmsr_ray.observability.progress import Progress


def config(folder: Path, seed: int = 0) -> Config:
    return Config(run=RunConfig(name="r", dir=str(folder), seed=seed), model=ModelConfig(path="m"), data=DataConfig(train="a", test="b"))


def folder(path: Path, seed: int = 0) -> RunFolder:
    return RunFolder(config(path, seed), Progress(io.StringIO()))


def test_a_finished_stage_is_done_once_over_all_submissions(tmp_path: Path) -> None:
    calls = []
    make = lambda: calls.append(1) or {"rows": [1, None]}  # noqa: E731
    first = folder(tmp_path).stage("evaluation", make)
    again = folder(tmp_path).stage("evaluation", make)
    assert first == again == {"rows": [1, None]}
    assert len(calls) == 1


def test_a_failed_stage_is_done_again_and_its_seconds_add_up(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        folder(tmp_path).stage("training", fail)
    run = folder(tmp_path)
    before = run.seconds["training"]
    assert before > 0
    assert run.stage("training", lambda: "model") == "model"
    assert run.seconds["training"] > before


def test_a_folder_belongs_to_one_config(tmp_path: Path) -> None:
    folder(tmp_path)
    folder(tmp_path).stage("a", lambda: 1)
    with pytest.raises(ConfigError, match="another config"):
        folder(tmp_path, seed=1)


def test_paths_mean_the_same_everywhere_and_names_stay_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    made = config(Path("runs"))
    made.evaluation.benchmarks = ["fvqa_test", "own=mine", "runs/x.parquet", "s3://bucket/x.parquet"]
    here = with_absolute_paths(made)
    assert here.run.dir == f"{tmp_path}/runs" and here.data.benchmarks_dir == ""
    assert here.evaluation.benchmarks == ["fvqa_test", f"own={tmp_path}/mine", f"{tmp_path}/runs/x.parquet", "s3://bucket/x.parquet"]
