from __future__ import annotations

import pytest

from mmsr_ray.agent.workflows import WORKFLOWS
from mmsr_ray.config import ConfigError, load
from mmsr_ray.evaluation import settings

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
