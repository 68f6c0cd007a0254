"""The settings of evaluations: of any model by itself, before and after training over all questions, during training over fewer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePath

from mmsr_ray.agent.seeds import seed_of
from mmsr_ray.types import Sampling

WORKFLOWS = ("on_demand", "direct", "rag")
_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)")


@dataclass
class EvaluationConfig:
    label: str = ""  # of the model in tables, by jobs/evaluate.py; "": from model.path
    benchmarks: list[str] = field(default_factory=list)  # names of evaluation/benchmarks, paths, or NAME=PATH; none: data.test
    questions: int = 0  # 0: all
    temperature: float = 0.0  # 0: greedy; above, answers follow from run.seed: the tries of a teacher (jobs/sft.py)
    workflows: list[str] = field(default_factory=lambda: ["on_demand", "direct", "rag"])
    judge_all: bool = False  # the judge decides about every answer; exact match and SubEM are reported beside it and decide nothing
    before_training: bool = True
    trajectories_shown: int = 12
    deadline_seconds: float = 7200.0  # of one workflow over all questions of one benchmark
    every_steps: int = 0  # during training, after every so many steps; 0: never
    questions_during: int = 200  # 0: all
    workflows_during: list[str] = field(default_factory=lambda: ["on_demand"])  # the first decides which checkpoint is the best


def name_and_path(benchmark: str) -> tuple[str, str]:
    """(name, path) of NAME=PATH; what has no "=" after a plain name is a path, or the name of a published set, and named after itself."""
    named = _NAMED.fullmatch(benchmark)
    return (named[1], named[2]) if named else (PurePath(benchmark.rstrip("/")).stem, benchmark)


def name_of(benchmark: str) -> str:
    """A benchmark's name in rows and files: as it was called, or of a file its own without ending."""
    return name_and_path(benchmark)[0]


def label_of(model_path: str) -> str:
    """A model's name in tables: of a hub id its last part, of a folder its own and that of the folder it lies in."""
    parts = PurePath(model_path).parts
    return "/".join(parts[-2:]) if PurePath(model_path).is_absolute() else parts[-1]


@dataclass
class FindingsConfig:
    """Of jobs/findings.py, which repeats the paper's findings on Atlas."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # each a world, a policy and an order of questions of its own
    early_sft_steps: int = 280  # warm start of the run that has room to improve under RAG
    sft_questions: int = 2240  # shown to the teachers, twice as many as RL sees: spec §4.3 has 8,000 against 5,000
    sft_epochs: int = 3
    sft_lr: float = 6.0e-4  # of RL


def sampling(c: EvaluationConfig, max_tokens: int, seed: int, uid: str) -> Sampling:
    """How the answer to a question is sampled; `seed` is run.seed. Nothing is learned from it: demonstrations go in as text."""
    return Sampling(c.temperature, max_tokens, seed_of(seed, uid) if c.temperature > 0 else None, logprobs=False)


def complaint(c: EvaluationConfig, *, judge: bool) -> str:
    """What cannot be, in one sentence; "" for nothing. `judge`: whether the run has one."""
    if c.judge_all and not judge:
        return "evaluation.judge_all needs a judge: set tools.judge.kind=chat and its url, model and key_env"
    if not 0 <= c.temperature <= 2:
        return f"evaluation.temperature={c.temperature}: choose 0 (greedy) or a value up to 2"
    if min(c.every_steps, c.questions, c.questions_during) < 0:
        return "evaluation.every_steps, questions and questions_during must be 0 (never; all) or more"
    if c.every_steps and not c.workflows_during:
        return "evaluation.every_steps needs a workflow in evaluation.workflows_during: on_demand is the one that is trained"
    names = [name_of(path) for path in c.benchmarks]
    if len(set(names)) < len(names):
        return f"evaluation.benchmarks names {', '.join(sorted(names))}: rows and files are told apart by these names, so give each its own, as in NAME=PATH"
    if not c.workflows:
        return f"evaluation.workflows names none: choose from {', '.join(WORKFLOWS)}"
    unknown = sorted({*c.workflows, *c.workflows_during} - set(WORKFLOWS))
    if unknown:
        return f"evaluation.workflows names {', '.join(unknown)}: choose from {', '.join(WORKFLOWS)}"
    return ""
