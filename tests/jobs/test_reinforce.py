"""The training stage under kill -9: of its trial, which Tune starts anew, and of the whole submission, which a user does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from jobs.reinforce import reinforce
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.config import Config, to_yaml
from mmsr_ray.tools.actor import start_tools
from tests.algorithms.conftest import run_config, trained
from tests.algorithms.searcher import Unhurried

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300  # of one submission; half a minute on a quiet machine
SCRIPT = """
import sys
from pathlib import Path
from jobs.connect import connect
from jobs.reinforce import reinforce
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.config import load
from mmsr_ray.tools.actor import start_tools
from tests.algorithms.searcher import Unhurried
plain = GRPOConfig.from_config
GRPOConfig.from_config = lambda config: plain(config).env_runners(env_runner_cls=Unhurried)
config = load(sys.argv[1])
connect(config)
tools = start_tools(config)
reinforce(config, config.model.path, Path(config.run.dir, config.run.name))
"""


def submit(config: Config) -> subprocess.Popen[bytes]:
    file = Path(config.run.dir) / "config.yaml"
    file.write_text(to_yaml(config))
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(file)], cwd=ROOT)


def steps(folder: Path) -> list[int]:
    file = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.is_file() else []


def wait_for_step(step: int, folder: Path, job: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while len(steps(folder)) < step:
        assert time.monotonic() < deadline, f"no step {step} within {SECONDS} s"
        assert job.poll() is None, "the submission ended by itself"
        time.sleep(0.05)


@pytest.mark.heavy
def test_a_killed_trial_and_a_killed_driver_go_on_from_their_checkpoint_with_the_same_prompts(
    cluster: None, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(tiny_model, tmp_path)
    config.rollout.num_runners, config.learner.world_size = 1, 1
    folder = tmp_path / "run"

    first = submit(config)
    wait_for_step(1, folder, first)
    (trial,) = [process for process in psutil.Process(first.pid).children(recursive=True) if "ray::GRPO" in " ".join(process.cmdline())]
    trial.kill()
    trial.wait(timeout=30)
    at_the_kill = len(steps(folder))
    wait_for_step(max(at_the_kill + 1, 2), folder, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert 2 <= max(steps(folder)) < config.grpo.steps

    plain = GRPOConfig.from_config
    monkeypatch.setattr(GRPOConfig, "from_config", lambda config: plain(config).env_runners(env_runner_cls=Unhurried))
    tools = start_tools(config)
    assert reinforce(config, config.model.path, folder) == str(folder / "model")
    assert steps(folder) == [1, 2, 3, 4]
    counts = Counter(uid for uids in trained(folder).values() for uid in uids)
    assert len(counts) == 4 * config.grpo.groups_per_step
    assert set(counts.values()) == {1}
    assert (folder / "model" / "config.json").is_file()

    reinforce(config, config.model.path, folder)  # nothing left to do
    del tools
    assert steps(folder) == [1, 2, 3, 4]
