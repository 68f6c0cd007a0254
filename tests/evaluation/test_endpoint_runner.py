"""The endpoint as an actor: an evaluation of a closed model on a Ray, by the same driver as an engine's."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from jobs.evaluate_model import evaluate_model
from mmsr_ray.atlas.prepare import point_at, prepare, start_web
from mmsr_ray.config import Config, ProviderConfig, load
from mmsr_ray.data.reader import read_samples
from mmsr_ray.tools.actor import start_tools
from mmsr_ray.tools.tape import Call, Tape, TapeMiss, claim
from mmsr_ray.types import ToolKind, ToolResult

pytestmark = pytest.mark.heavy
CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "atlas.yaml"
WORLD = [
    "atlas.unknown_demonstrated=1",
    "atlas.unknown_train=8",
    "atlas.unknown_test=8",
    "atlas.train_questions=9",
    "atlas.test_questions=18",
]


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    found = load(
        CONFIG, [*WORLD, f"run.dir={tmp_path}", "evaluation.workflows=[on_demand,direct]", f"tools.cache.dir={tmp_path / 'cache'}"]
    )
    found.tools.model = ProviderConfig(kind="chat", url="{atlas}/v1", model="atlas-oracle", rate_per_second=0)
    found.tools.model.price.per_call = 0.01
    prepare(found)
    web = start_web(found.atlas)
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, namespace="mmsr", logging_level=logging.WARNING)
    yield replace(found, tools=point_at(found.tools, web.base))
    ray.shutdown()
    web.stop()


def test_a_closed_model_is_evaluated_and_paid_once(config: Config, tmp_path: Path) -> None:
    tools = start_tools(config)
    demand, direct = evaluate_model(config, tmp_path / "first", "oracle")
    assert (demand["accuracy"], demand["search_precision"], demand["search_recall"]) == (1.0, 1.0, 1.0)
    assert direct["accuracy"] == pytest.approx(6 / 18), "what needs no search"
    assert (demand["questions"], demand["infra_errors"], demand["model"]) == (18, 0, "oracle")
    paid = asyncio.run(tools.stats())["model.cost_usd"]
    again, _ = evaluate_model(config, tmp_path / "second", "oracle")
    assert again["accuracy"] == 1.0
    after = asyncio.run(tools.stats())
    assert after["model.cost_usd"] == pytest.approx(paid), "a repeated evaluation pays nothing"


def test_a_replay_that_lacks_a_call_names_the_question_and_the_call(config: Config, tmp_path: Path) -> None:
    config.tools.tape.mode, config.tools.tape.dir = "replay", str(tmp_path / "tape")
    claim(tmp_path / "tape", config.run.name, config.tools)
    tape = Tape(tmp_path / "tape")
    tape.keep(Call(ToolKind.TEXT, "another run's", "", config.agent.topk), ToolResult(ToolKind.TEXT, "another run's"))
    tape.close()
    tools = start_tools(config)
    with pytest.raises(TapeMiss) as miss:
        evaluate_model(config, tmp_path / "run", "oracle")
    uids = {sample.uid for sample in read_samples(config.data.test, config.data)}
    found = re.fullmatch(r"question (\S+): the tape in \S+ has no model search '[0-9a-f]{64}' .*: record it with .*", str(miss.value))
    assert found and found[1] in uids
    assert asyncio.run(tools.stats())["tape.misses"] >= 1
