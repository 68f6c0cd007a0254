"""When training is evaluated, which model is the best, and what goes wrong without ending the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from mmsr_ray.algorithms import during
from mmsr_ray.algorithms.during import DuringTraining, better
from mmsr_ray.config import Config, load
from mmsr_ray.evaluation.rows import read_rows
from mmsr_ray.evaluation.run import Entry, Evaluation
from mmsr_ray.learner.durable import NotWritten
from mmsr_ray.tools.errors import BudgetSpent
from mmsr_ray.tools.tape import TapeMiss
from mmsr_ray.types import Outcome
from tests.algorithms.values import summary


def row(accuracy: float | None, searches: float = 1.0, step: int = 1, lost: int = 0) -> dict[str, Any]:
    return {"accuracy": accuracy, "searches_per_question": searches, "step": step, "questions": 10 - lost, "infra_errors": lost}


@pytest.mark.parametrize(
    ("new", "old", "verdict"),
    [
        (row(0.5), None, True),
        (row(0.5, step=2), row(0.4), True),
        (row(0.4, step=2), row(0.5), False),
        (row(0.5, 0.9, step=2), row(0.5, 1.0), True),  # fewer searches
        (row(0.5, 1.0, step=2), row(0.5, 1.0), False),  # the earlier one
        (row(0.5, 1.0, step=1), row(0.5, 1.0, step=2), True),
        (row(None, lost=10), None, False),
        (row(0.9, lost=3), row(0.5), False),  # three of ten were lost
        (row(0.9, lost=2), row(0.5), True),
    ],
)
def test_which_is_better(new: dict[str, Any], old: dict[str, Any] | None, verdict: bool) -> None:
    assert better(new, old, lost=0.2) is verdict


class World:
    """An evaluation whose answers are given, and a learner whose model is a word."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        overrides = {"evaluation.every_steps": 2, "evaluation.questions_during": 4, "run.dir": folder, **settings}
        paths = ["model.path=m", "data.train=a", f"data.test={folder / 'test.parquet'}"]
        self.config: Config = load(None, [*paths, *(f"{key}={value}" for key, value in overrides.items())])
        self.folder, self.correct, self.asked = folder, 0, 0
        self.error: Exception | None = None
        monkeypatch.setattr("mmsr_ray.evaluation.rows.evaluate", self.evaluate)
        monkeypatch.setattr("mmsr_ray.evaluation.rows.iter_samples", lambda *args, questions, **kw: range(questions))
        self.during = DuringTraining(self.config, folder, self.export)
        self.full = False

    def evaluate(self, actors: list[Any], samples: range, workflow: str, **kwargs: Any) -> Evaluation:
        self.asked += len(samples)
        if self.error is not None:
            raise self.error
        entries = [Entry(str(i), summary(correct=i < self.correct, outcome=Outcome.OK)) for i in samples]
        return Evaluation(workflow, entries, [], 1.5)

    def export(self, folder: Path, files: dict[str, bytes]) -> None:
        if self.full:
            raise NotWritten("the disk is full")
        folder.mkdir(exist_ok=True)
        (folder / "model").write_text(f"{self.correct} right")
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def at(self, step: int, correct: int) -> dict[str, Any]:
        self.correct = correct
        return self.during.record(step, step + 100, list)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def best(world: World) -> tuple[int, float, str]:
    found = json.loads((world.folder / "best" / "best.json").read_text())
    return found["step"], found["accuracy"], (world.folder / "best" / "model").read_text()


def test_it_is_due_every_so_many_steps_and_off_by_default(world: World, tmp_path: Path) -> None:
    assert [step for step in range(7) if world.during.due(step)] == [2, 4, 6]
    off = load(None, ["model.path=m", "data.train=a", "data.test=b"])
    assert not any(DuringTraining(off, tmp_path, world.export).due(step) for step in range(9))


def test_rows_go_to_the_record_and_the_run_folder_and_the_best_is_kept(world: World) -> None:
    record = world.at(2, correct=2)
    assert record["on_demand"]["accuracy"] == 0.5
    assert (record["best_accuracy"], record["best_step"]) == (0.5, 2)
    assert record["seconds"] >= 0
    assert "name" not in record["on_demand"]
    world.at(4, correct=3)
    record = world.at(6, correct=1)
    assert (record["on_demand"]["accuracy"], record["best_accuracy"], record["best_step"]) == (0.25, 0.75, 4)
    assert best(world) == (4, 0.75, "3 right")
    rows = read_rows(world.folder)
    assert [(r["name"], r["step"], r["weight_version"], r["questions"]) for r in rows] == [
        ("at step 2, on_demand", 2, 102, 4),
        ("at step 4, on_demand", 4, 104, 4),
        ("at step 6, on_demand", 6, 106, 4),
    ]


def test_a_step_that_stays_done_is_not_measured_again(world: World) -> None:
    world.at(2, correct=2)
    resumed = DuringTraining(world.config, world.folder, world.export)
    resumed.went_back(2)
    again = resumed.record(2, 105, list)
    assert world.asked == 4
    assert (again["on_demand"]["accuracy"], again["best_step"]) == (0.5, 2)


def test_a_run_that_goes_back_replaces_the_rows_of_its_first_life(world: World) -> None:
    (world.folder / "rows").mkdir()
    (world.folder / "rows" / "before_RL.json").write_text(json.dumps([{"name": "before RL, direct"}]))
    world.at(2, correct=1)
    world.at(4, correct=3)
    world.during.went_back(2)
    assert [r["name"] for r in read_rows(world.folder)] == ["before RL, direct", "at step 2, on_demand"]
    world.correct = 2
    again = world.during.record(4, 205, list)
    assert (again["on_demand"]["accuracy"], again["best_step"], again["best_accuracy"]) == (0.5, 4, 0.75)
    assert best(world) == (4, 0.75, "3 right"), "it is a model that was, and the better one"
    (_, _, row) = read_rows(world.folder)
    assert (row["name"], row["weight_version"], row["accuracy"]) == ("at step 4, on_demand", 205, 0.5)


def test_workflows_and_questions_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = World(tmp_path, monkeypatch, **{"evaluation.workflows_during": "[rag,direct]", "evaluation.questions_during": 3})
    record = two.at(2, correct=3)
    assert (list(record)[:2], two.asked) == (["rag", "direct"], 6)


@pytest.mark.parametrize("error", [RayActorError(), BudgetSpent("no money"), OSError("the disk of the questions is gone")])
def test_what_breaks_leaves_the_step_without_rows_and_the_training_on(world: World, error: Exception) -> None:
    world.error = error
    assert world.at(2, correct=4).keys() == {"failed", "seconds"}
    assert read_rows(world.folder) == []
    world.error = None
    assert world.at(4, correct=1)["best_step"] == 4


def test_a_replay_that_asks_for_what_its_tape_lacks_ends(world: World) -> None:
    world.error = TapeMiss("no such search")
    with pytest.raises(TapeMiss):
        world.at(2, correct=4)


def test_on_a_full_disk_the_best_stays_as_it_was_and_the_next_one_is_tried(world: World) -> None:
    world.at(2, correct=1)
    world.full = True
    record = world.at(4, correct=2)
    assert (record["best_step"], record["on_demand"]["accuracy"]) == (2, 0.5)
    assert best(world) == (2, 0.25, "1 right")
    world.full = False
    assert world.at(6, correct=2)["best_step"] == 6


def test_a_swap_that_was_killed_is_ended_at_the_start(world: World) -> None:
    world.at(2, correct=1)
    (world.folder / "best").rename(world.folder / "best.old")
    assert DuringTraining(world.config, world.folder, world.export).best() is not None
    assert during.BEST in {path.name for path in world.folder.iterdir()}
