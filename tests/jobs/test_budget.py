"""Training that runs out of money: it stops at a checkpoint, says so, and goes on exactly there under a higher budget."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from jobs import command
from jobs.train import train
from mmsr_ray.algorithms.grpo_config import GRPOConfig
from mmsr_ray.algorithms.spending import enough
from mmsr_ray.atlas.prepare import point_at, start_web, world_of
from mmsr_ray.config import CacheConfig, Config, load
from mmsr_ray.data.schema import write_fvqa
from mmsr_ray.evaluation.rows import rows_file
from mmsr_ray.evaluation.tools import read_tools
from mmsr_ray.evaluation.trajectories import read_trajectories
from mmsr_ray.tools.actor import stop_tools
from mmsr_ray.tools.errors import BudgetSpent
from mmsr_ray.tools.purse import Account
from tests.algorithms.conftest import run_config
from tests.algorithms.searcher import Searcher

ATLAS_YAML = Path(__file__).parents[2] / "jobs" / "configs" / "atlas.yaml"
SPENT = "tools-spent.json"


@pytest.mark.parametrize(
    ("budget", "spent", "recent", "verdict"),
    [
        (0.0, 99.0, [5.0], True),  # no limit
        (1.0, 0.9, [], True),  # nothing to judge by
        (1.0, 0.9, [0.0, 0.0], True),  # all from the cache
        (1.0, 0.9, [0.05, 0.1, 0.02], True),
        (1.0, 0.9, [0.05, 0.11, 0.02], False),
        (1.0, 1.2, [0.01], False),
    ],
)
def test_is_there_enough_for_a_step(budget: float, spent: float, recent: list[float], verdict: bool) -> None:
    assert enough(Account(budget, spent, 0.0), recent) is verdict


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Iterator[Config]:
    """Three groups a step, four steps, four test questions; each picture costs one image search of a cent."""
    atlas = load(ATLAS_YAML)
    made = run_config(tiny_model, tmp_path)
    made.data.test = str(tmp_path / "test.parquet")
    write_fvqa(made.data.train, world_of(atlas.atlas).samples("train", 20))
    write_fvqa(made.data.test, world_of(atlas.atlas).samples("test", 4))
    web = start_web(atlas.atlas)
    made.tools = point_at(atlas.tools, web.base)
    made.tools.image_search.price.per_call = 0.01
    made.tools.cache = CacheConfig(dir=str(tmp_path / "cache"))
    made.rollout.num_runners, made.learner.world_size = 1, 1
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=400 << 20, namespace="mmsr", logging_level=logging.WARNING)
    yield made
    ray.shutdown()
    web.stop()


def submit(config: Config, budget: float) -> Path:
    config.tools.budget_usd = budget
    try:
        return train(config)
    finally:
        stop_tools(config)


def counted(folder: Path) -> float:
    return json.loads((folder / SPENT).read_text())["counted_usd"]


def steps(folder: Path) -> list[int]:
    file = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.is_file() else []


@pytest.mark.heavy
def test_the_money_ends_three_times_and_every_prompt_is_trained_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = GRPOConfig.from_config
    monkeypatch.setattr(GRPOConfig, "from_config", lambda config: plain(config).env_runners(env_runner_cls=Searcher))
    folder = tmp_path / "run"

    with pytest.raises(BudgetSpent, match=r"0\.055 USD is spent after training step 0 of 4: raise tools\.budget_usd"):
        submit(config, 0.055)  # four pictures of the evaluation, one of the first step
    assert json.loads((folder / "summary.json").read_text())["rows"][0]["questions"] == 4
    assert "<b>0.0500 USD</b> of a budget of 0.0550 USD" in (folder / "report.html").read_text()
    assert counted(folder) == 0.05
    assert rows_file(folder, "before RL").is_file()
    assert steps(folder) == []
    found = read_tools(folder)
    assert found is not None and (found["stopped"], found["steps"]) == ("budget", 0)

    with pytest.raises(BudgetSpent, match="after training step 0"):
        submit(config, 0.055)  # the same budget: nothing is started
    with pytest.raises(BudgetSpent, match="after training step 1 of 4"):
        submit(config, 0.085)  # two pictures more; the next step would cost as much and 0.015 are left
    assert counted(folder) == 0.07
    assert steps(folder) == [1]

    assert submit(config, 0.0) == folder
    assert counted(folder) == 0.16
    assert steps(folder) == [1, 2, 3, 4]
    assert (folder / "model" / "config.json").is_file()
    trained = Counter((row.step, row.uid) for row in read_trajectories(folder / "trajectories") if row.step is not None)
    assert len({uid for _, uid in trained}) == len(trained) == 4 * config.grpo.groups_per_step
    found = read_tools(folder)
    assert found is not None and found["stopped"] == ""
    assert found["sums"]["image_search.answered"] == 16
    assert found["saving"]["searches"]["image searches"]["paid"] == 16
    records = [json.loads(line)["tools"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["cost_usd"] for record in records] == [0.02, 0.03, 0.03, 0.03]
    assert all(record["calls"] == 6 for record in records[1:])
    assert records[-1]["cost_usd_total"] == 0.16


def test_a_job_without_money_ends_with_its_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def poor(config: Config) -> Path:
        raise BudgetSpent("it is spent")

    monkeypatch.setattr(command, "connect", lambda config: None)
    monkeypatch.setattr("sys.argv", ["train", "--config", str(ATLAS_YAML)])
    assert command.run_job("train", None, poor) == command.OUT_OF_MONEY == 3
