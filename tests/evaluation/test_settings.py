from __future__ import annotations

import pytest

from mmsr_ray.agent.workflows import WORKFLOWS
from mmsr_ray.config import ConfigError, load
from mmsr_ray.evaluation import settings
from mmsr_ray.evaluation.settings import label_of, name_of

PATHS = ["model.path=m", "data.train=a", "data.test=b"]


def test_the_names_of_workflows_are_those_of_the_agent() -> None:
    assert list(settings.WORKFLOWS) == list(WORKFLOWS)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluation.every_steps=-1", "0 \\(never; all\\) or more"),
        ("evaluation.workflows=[magic]", "names magic: choose from on_demand, direct, rag"),
        ("evaluation.workflows_during=[on_demand,magic]", "names magic"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(None, [*PATHS, override])


def test_evaluation_during_training_needs_a_workflow() -> None:
    with pytest.raises(ConfigError, match="needs a workflow"):
        load(None, [*PATHS, "evaluation.every_steps=5", "evaluation.workflows_during=[]"])
    assert load(None, [*PATHS, "evaluation.workflows_during=[]"]).evaluation.every_steps == 0


def test_benchmarks_are_told_apart_by_name() -> None:
    assert [name_of(text) for text in ("fvqa_test", "/data/mine.parquet", "own=/data/mine.jsonl", "folder/")] == [
        "fvqa_test",
        "mine",
        "own",
        "folder",
    ]
    made = load(None, [*PATHS, "evaluation.benchmarks=[a=/data/mine.jsonl,b=/data/mine.jsonl]"])
    assert made.evaluation.benchmarks == ["a=/data/mine.jsonl", "b=/data/mine.jsonl"]
    with pytest.raises(ConfigError, match="give each its own, as in NAME=PATH"):
        load(None, [*PATHS, "evaluation.benchmarks=[/x/mine.jsonl,/y/mine.parquet]"])


def test_a_model_is_called_by_the_end_of_its_path() -> None:
    assert label_of("lmms-lab/MMSearch-R1-7B") == "MMSearch-R1-7B"
    assert label_of("/runs/atlas/model") == "atlas/model"
