"""The evaluations that run folders hold, question by question, and which of them may be compared.

Promise: two evaluations are comparable only if they asked the same questions, judged answers by the same rule and, where both
search, searched the same web within the same budget; else there is a sentence for each thing that differs. Where a run
keeps only some of its answers, their number and those kept must not speak against the same questions. Pictures and texts of
trajectories are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
from omegaconf import OmegaConf

from mmsr_ray.evaluation.settings import WORKFLOWS
from mmsr_ray.evaluation.significance import Result
from mmsr_ray.evaluation.summary import read_summary
from mmsr_ray.types import Outcome

TRAJECTORIES = "trajectories"
CONFIG = "config.yaml"
COLUMNS = ("uid", "question", "outcome", "correct", "turns.list.element.tool")
STACK = ("image_search", "text_search", "reader", "summariser")
BUDGET = ("search_limit", "image_search_limit", "text_search_limit", "topk")
LOCAL = ("localhost", "127.0.0.1", "::1")  # where a service runs on the machine itself says nothing about which one it is


@dataclass(frozen=True, eq=False)  # two are the same if they are one
class Evaluated:
    """One model on one benchmark by one workflow: a row of summary.json and what became of each question.

    `questions`: text by uid, `answers`: result by uid, both in the order of the file and both empty where there is none.
    """

    run: str
    model: str
    benchmark: str
    workflow: str
    row: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)  # of config.yaml; empty where the folder has none
    file: Path | None = None
    questions: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, Result] = field(default_factory=dict)

    @property
    def asked(self) -> int:
        """Questions, those included that infrastructure broke."""
        return self.row["questions"] + self.row.get("infra_errors", 0)

    @property
    def lost(self) -> int:
        """Questions of which no answer was kept: broken ones without a trajectory or, where few are kept on purpose, most."""
        return self.asked - len(self.answers)

    @property
    def complete(self) -> bool:
        """Is every answer that counts there?"""
        return bool(self.answers) and self.lost <= self.row.get("infra_errors", 0)

    @property
    def while_training(self) -> bool:
        """Of a policy in the middle of its training (evaluation.every_steps)?"""
        return "step" in self.row

    @property
    def search_limit(self) -> int:
        return self.settings.get("agent", {}).get("search_limit", 2)


def read_runs(folders: Sequence[Path]) -> list[Evaluated]:
    """The evaluations of all folders, each once, named by the folder or, where two have the same name, by its path. Raises as `read_evaluated`."""
    paths = list(dict.fromkeys(folder.resolve() for folder in folders))
    names = [path.name for path in paths]
    return [
        found
        for path, name in zip(paths, names, strict=True)
        for found in read_evaluated(path, name if names.count(name) == 1 else str(path))
    ]


def read_evaluated(folder: str | Path, run: str = "") -> list[Evaluated]:
    """Every row of a run's summary.json; `run` names it, by default as the folder. Raises FileNotFoundError where the run has not finished, ValueError for a file with a uid twice."""
    folder = Path(folder)
    settings = _settings(folder / CONFIG)
    found = []
    for row in read_summary(folder)["rows"]:
        model, workflow = _named(row)
        benchmark = row.get("benchmark", row["split"])
        file = _file(folder / TRAJECTORIES, benchmark, model, workflow)
        questions, answers = _answers(file) if file is not None else ({}, {})
        found.append(Evaluated(run or folder.resolve().name, model, benchmark, workflow, row, settings, file, questions, answers))
    return found


def not_comparable(a: Evaluated, b: Evaluated) -> list[str]:
    """Why the difference of two evaluations would be of something else than the model or the workflow; empty where nothing is in the way."""
    return [*_questions_differ(a, b), *_conditions_differ(a, b)]


def _questions_differ(a: Evaluated, b: Evaluated) -> list[str]:
    if a.benchmark != b.benchmark:
        return [f"other benchmark: {a.benchmark} and {b.benchmark}"]
    if a.asked != b.asked:
        return [f"other questions: {a.asked} and {b.asked} of {a.benchmark}"]
    alone = max(len(a.answers.keys() - b.answers.keys()) - b.lost, len(b.answers.keys() - a.answers.keys()) - a.lost)
    if alone > 0:
        return [f"other questions: {alone} of {a.asked} were asked by one only"]
    changed = sum(a.questions[uid] != b.questions[uid] for uid in a.questions.keys() & b.questions.keys())
    return [f"other questions: {changed} ids stand for other texts"] if changed else []


def _conditions_differ(a: Evaluated, b: Evaluated) -> list[str]:
    missing = [one.run for one in (a, b) if not one.settings]
    if missing:
        return [f"{missing[0]} has no {CONFIG}: how it was judged and what it searched is not known"]
    searching = "direct" not in (a.workflow, b.workflow)
    kinds = {"other judge": _judging} | ({"other search": _searching} if searching else {})
    reasons = []
    for what, look in kinds.items():
        one, other = look(a.settings), look(b.settings)
        changed = [f"{key} {one.get(key)!r} and {other.get(key)!r}" for key in sorted(one | other) if one.get(key) != other.get(key)]
        if changed:
            reasons.append(f"{what}: {', '.join(changed)}")
    return reasons


def _judging(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What says whether an answer is right, by dotted key. Settings that a run of before did not know have their default."""
    judge = settings["tools"].get("judge", {"kind": "none"})
    rule = settings["reward"].get("match", "em")
    if judge["kind"] == "none":
        return {"reward.match": rule, "tools.judge.kind": "none"}
    everything = settings.get("evaluation", {}).get("judge_all", False)
    return {
        "reward.match": "none" if everything else rule,
        "reward.judge_sees_picture": settings["reward"].get("judge_sees_picture", False),
        **_service("judge", judge),
    }


def _searching(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The services that find and read pages, and how many searches a question may have, by dotted key."""
    stack = {key: value for name in STACK if name in settings["tools"] for key, value in _service(name, settings["tools"][name]).items()}
    return stack | {f"agent.{name}": settings["agent"].get(name) for name in BUDGET}


def _service(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    host = urlsplit(section.get("url", "")).hostname or ""
    identity = {
        "kind": section["kind"],
        "host": "" if host in LOCAL else host,
        "model": section.get("model", ""),
        "path": section.get("path", ""),
    }
    return {f"tools.{name}.{key}": value for key, value in identity.items()}


def _settings(file: Path) -> Mapping[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}  # type: ignore[return-value]


def _named(row: Mapping[str, Any]) -> tuple[str, str]:
    """(model, workflow); of rows of before out of their name "model, workflow"."""
    if "model" in row and "workflow" in row:
        return row["model"], row["workflow"]
    model, _, workflow = row["name"].rpartition(", ")
    return (model, workflow) if workflow in WORKFLOWS and model else (row["name"], "")


def _file(folder: Path, benchmark: str, model: str, workflow: str) -> Path | None:
    """Of jobs/evaluate.py, else of a training run, which names its files by the model."""
    names = [f"{benchmark}-{workflow}.parquet", f"{model}-{workflow}.parquet".replace(" ", "_")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _answers(file: Path) -> tuple[dict[str, str], dict[str, Result]]:
    questions: dict[str, str] = {}
    answers: dict[str, Result] = {}
    for row in pq.ParquetFile(file).read(columns=list(COLUMNS)).to_pylist():
        uid = row["uid"]
        if uid in answers:
            raise ValueError(f"{file} holds question {uid} twice: an evaluation asks each of its questions once")
        correct = None if row["outcome"] == Outcome.INFRA_ERROR else row["correct"]
        questions[uid] = row["question"]
        answers[uid] = Result(uid, correct, sum(turn["tool"] is not None for turn in row["turns"]))
    return questions, answers
