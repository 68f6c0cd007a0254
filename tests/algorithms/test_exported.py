"""What a training run tells Prometheus beside its steps."""

from __future__ import annotations

import pytest

from mmsr_ray.algorithms import exported
from mmsr_ray.algorithms.exported import Exported
from mmsr_ray.config import Config
from mmsr_ray.metrics import catalogue as m
from mmsr_ray.metrics.catalogue import Metric
from tests.metrics.test_steps import record


class Told(dict[str, float]):
    """In place of `Gauges`: the last value of each, by name and labels. Labels are checked as Ray does."""

    def set(self, metric: Metric, value: float, labels: dict[str, str] | None = None) -> None:
        assert {"run", *(labels or {})} == set(metric.labels), metric.name
        self[metric.name + "".join(f",{value}" for value in (labels or {}).values())] = value

    def stop(self) -> None:
        self.clear()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(exported, "Gauges", lambda given: told)
    return told


def run() -> tuple[Exported, list[float]]:
    now = [100.0]
    config = Config()
    config.grpo.steps, config.rollout.num_runners, config.tools.budget_usd = 9, 3, 5.0
    return Exported(config, clock=lambda: now[0]), now


def test_settings_are_told_and_the_clock_runs_from_the_start(told: Told) -> None:
    run()
    assert (told[m.STEPS_WANTED.name], told[m.RUNNERS_WANTED.name], told[m.BUDGET.name], told[m.STEP.name]) == (9, 3, 5.0, 0)
    assert told[m.PROGRESS.name] == 100.0 and told[m.SKIPPED.name] == 0


def test_steps_evaluations_and_a_resume_are_progress_and_nothing_else_is(told: Told) -> None:
    export, now = run()
    now[0] = 110.0
    export.now({"queued": 4, "flying": 2, "ready": 0}, runners=2)
    assert told[m.GROUPS.name + ",queued"] == 4 and told[m.RUNNERS.name] == 2 and told[m.PROGRESS.name] == 100.0
    export.step(record())
    assert told[m.STEP.name] == 7 and told[m.PROGRESS.name] == 110.0
    now[0] = 120.0
    with pytest.raises(OSError, match="the disk"):
        _evaluate_in_vain(export, told)
    assert told[m.EVALUATING.name] == 0 and told[m.PROGRESS.name] == 120.0
    now[0] = 130.0
    export.at(5)  # back to a checkpoint
    assert told[m.STEP.name] == 5 and told[m.PROGRESS.name] == 130.0


def _evaluate_in_vain(export: Exported, told: Told) -> None:
    with export.evaluating():
        assert told[m.EVALUATING.name] == 1 and told[m.PROGRESS.name] == 110.0
        raise OSError("the disk")
