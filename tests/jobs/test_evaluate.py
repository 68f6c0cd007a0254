"""The whole job on the tiny policy: killed in the middle and submitted again, and what it refuses."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import evaluate
from jobs.evaluate_model import model_files
from mmsr_ray.atlas.prepare import WebProcess, point_at, start_web
from mmsr_ray.atlas.world import World
from mmsr_ray.config import AtlasConfig, load, to_dict, to_yaml
from mmsr_ray.data.schema import write_fvqa
from mmsr_ray.evaluation.answers import FILE, Answers
from mmsr_ray.evaluation.trajectories import read_trajectories

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).parents[2]
QUESTIONS = 24
PATIENCE = 400.0  # seconds; on a machine that is busy an engine takes minutes to start


@pytest.fixture
def web() -> Iterator[WebProcess]:
    started = start_web(AtlasConfig(latency_seconds=0.1))
    yield started
    started.stop()


def asked(web: WebProcess) -> int:
    """Image searches that reached the web: the fixed workflow makes one for each question."""
    with urllib.request.urlopen(f"{web.base}/stats", timeout=10) as reply:
        return json.load(reply).get("google_lens", 0)


def write_config(folder: Path, model: Path, base: str) -> Path:
    """Questions with a picture each of their own, and a cache that forgets at once: every question asked is a search."""
    pictures = {sample.image: sample for sample in World(0).samples("test", 4 * QUESTIONS)}
    write_fvqa(folder / "test.parquet", list(pictures.values())[:QUESTIONS])
    config = load(
        ROOT / "jobs" / "configs" / "evaluate_atlas.yaml",
        [
            "atlas.enabled=false",
            f"run.dir={folder}",
            f"model.path={model}",
            f"data.train={folder}/test.parquet",
            f"data.test={folder}/test.parquet",
            f"evaluation.benchmarks=[killed={folder}/test.parquet]",
            "tools.cache.days=1e-9",
            "evaluation.workflows=[rag]",
            "sft.enabled=false",
            "rollout.max_num_seqs=2",
        ],
    )
    file = folder / "config.yaml"
    file.write_text(to_yaml(replace(config, tools=point_at(config.tools, base))))
    return file


def arguments(file: Path, *overrides: str) -> list[str]:
    return ["jobs/evaluate.py", "--config", str(file), *overrides]


def start(file: Path) -> subprocess.Popen[str]:
    command = [sys.executable, *arguments(file)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Of summary.json by benchmark, without names and seconds."""
    found = json.loads((folder / "summary.json").read_text())["rows"]
    told = ("name", "split", "benchmark", "per_question")
    return {row["benchmark"]: {key: value for key, value in row.items() if key not in told} for row in found}


def test_a_killed_evaluation_asks_nothing_twice_and_ends_as_if_it_had_not_been(
    tiny_model: Path, tmp_path: Path, web: WebProcess, run_here: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    """The second submission asks the same questions once more under another name: that is the evaluation that nobody killed."""
    file = write_config(tmp_path, tiny_model, web.base)
    killed = start(file)
    deadline = time.monotonic() + PATIENCE
    while asked(web) < QUESTIONS // 2 and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.05)
    assert killed.poll() is None, killed.communicate(timeout=10)
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=10)
    time.sleep(1.0)  # requests that were under way have arrived
    at_kill = asked(web)
    config = load(file)
    folder = tmp_path / config.run.name
    with Answers(folder / FILE, to_dict(config) | {"model_files": model_files(config.model.path)}) as answers:
        kept = answers.answered("killed", "rag")
    assert 0 < len(kept) < QUESTIONS

    both = f"evaluation.benchmarks=[killed={tmp_path}/test.parquet,whole={tmp_path}/test.parquet]"
    with caplog.at_level(logging.INFO):
        assert run_here(evaluate.main, arguments(file, both, "agent.deadline_seconds=100")) == 0, "less patience is the same evaluation"
    assert asked(web) - at_kill == QUESTIONS - len(kept) + QUESTIONS
    assert f"{len(kept)} answers are there already" in caplog.text
    found = rows(folder)
    assert found["killed"] == found["whole"]
    assert found["killed"]["questions"] == QUESTIONS and found["killed"]["infra_errors"] == 0
    episodes = [list(read_trajectories(folder / "trajectories" / f"{name}-rag.parquet")) for name in ("killed", "whole")]
    assert [(e.uid, e.answer, e.picture) for e in episodes[0]] == [(e.uid, e.answer, e.picture) for e in episodes[1]]
    assert (folder / "report.html").is_file() and (folder / "browse" / "index.html").is_file() and (folder / "config.yaml").is_file()

    assert run_here(evaluate.main, arguments(file, "agent.topk=1")) == 2
    assert "agent.topk was 2 and is 1" in caplog.messages[-1]


def test_a_model_without_a_chat_template_is_one_sentence(
    tiny_model: Path, tmp_path: Path, web: WebProcess, run_here: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    bare = shutil.copytree(tiny_model, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    assert run_here(evaluate.main, arguments(write_config(tmp_path, bare, web.base))) == 2
    assert "has no chat template: copy chat_template.jinja from the model's hub page into it" in caplog.messages[-1]
