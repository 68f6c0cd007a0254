"""The whole job in small: world, warm start, evaluation, training one version stale, evaluation, report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import train
from mmsr_ray.atlas.world import World
from mmsr_ray.data.schema import write_fvqa

ROOT = Path(__file__).parents[2]
SMALL = (
    "run.name=small",
    "learner.world_size=1",
    "atlas.train_questions=64",
    "atlas.test_questions=24",
    "atlas.demonstrations=96",
    "sft.steps=6",
    "sft.batch_size=16",
    "grpo.steps=3",
    "grpo.groups_per_step=4",
    "grpo.group_size=2",
    "grpo.staleness=1",
    "evaluation.trajectories_shown=4",
)


def arguments(folder: Path, *overrides: str) -> list[str]:
    return ["jobs/train.py", "--config", str(ROOT / "jobs" / "configs" / "atlas.yaml"), f"run.dir={folder}", *SMALL, *overrides]


def submit(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments(folder, *overrides)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.heavy
def test_a_run_leaves_what_it_promises(tmp_path: Path, run_here: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    done = submit(tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    run = tmp_path / "small"
    summary = json.loads((run / "summary.json").read_text())
    names = [row["name"] for row in summary["rows"]]
    assert names == [f"{when} RL, {workflow}" for when in ("before", "after") for workflow in ("on_demand", "direct", "rag")]
    assert all(row["questions"] == 24 and row["infra_errors"] == 0 for row in summary["rows"])
    assert set(summary) >= {"run", "config_hash", "seed", "machine", "seconds", "rows"}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(record["staleness_max"] <= 1 and record["mismatch_abs_mean"] < 0.5 for record in records)
    # Before anything is stale engine and learner agree, but for the mass that a hardly trained policy gives to the vision ids
    # that the engine never samples.
    assert records[0]["mismatch_abs_mean"] < 0.02
    assert (run / "report.html").stat().st_size > 10_000
    assert list((run / "tensorboard").iterdir()) and list((run / "trajectories").glob("**/*.parquet"))
    assert "step 3" in (run / "browse" / "index.html").read_text() and "browse/index.html" in (run / "report.html").read_text()
    assert (run / "config.yaml").is_file() and (run / "model" / "model.safetensors").is_file()

    assert run_here(train.main, arguments(tmp_path)) == 0
    assert "done before" in capsys.readouterr().out, "nothing is done twice"


@pytest.mark.heavy
def test_what_cannot_be_is_an_exit_status_and_no_traceback(tmp_path: Path) -> None:
    refused = submit(tmp_path, "grpo.group_sise=4")
    assert refused.returncode == 2, refused.stderr[-3000:]
    assert "group_sise" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["atlas.enabled=false", "model.path={policy}", "data.train=nowhere.parquet", "data.test=nowhere.parquet"], "nowhere.parquet"),
        (["atlas.enabled=false", "model.path={bare}", "data.train={rows}", "data.test={rows}"], "chat template"),
        (["atlas.enabled=false", "model.path={policy}", "data.train={rows}", "data.test={rows}"], "nothing answers at http://127.0.0.1:9"),
    ],
    ids=["no data", "no chat template", "no web"],
)
def test_what_cannot_be_is_one_sentence(
    tiny_model: Path,
    tmp_path: Path,
    run_here: Callable[..., int],
    caplog: pytest.LogCaptureFixture,
    overrides: list[str],
    said: str,
) -> None:
    bare, rows = tmp_path / "bare", tmp_path / "rows.parquet"
    shutil.copytree(tiny_model, bare)
    (bare / "chat_template.jinja").unlink()
    write_fvqa(rows, World(0).samples("test", 4))
    places = {"policy": str(tiny_model), "bare": str(bare), "rows": str(rows)}
    dead = [f"tools.{name}.url=http://127.0.0.1:9/" for name in ("image_search", "image_host", "text_search", "reader", "summariser")]
    assert (
        run_here(train.main, arguments(tmp_path, "sft.enabled=false", *dead, *(override.format(**places) for override in overrides))) == 2
    )
    assert said in caplog.messages[-1]
