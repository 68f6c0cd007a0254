"""The paper's five findings, in small: trains every variant over several seeds, measures them alike, says which finding held.

    python jobs/submit.py -- python jobs/findings.py --config jobs/configs/findings.yaml
    python jobs/findings.py --config jobs/configs/findings.yaml findings.seeds=[0]

A seed is a world, a policy and an order of questions of its own. Each of its runs lies in `<run>/seed-<s>/<variant>`, in the
form of jobs/train.py; what is done is not done again, so a killed job goes on where it stopped, and seeds may be run one by one.
What counts as held is written in mmsr_ray/evaluation/findings.py. Writes `<run>/findings.json` and `findings.html`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the jobs package, when this file is run as a script

from jobs.command import TO_MEND, USERS_TO_MEND
from jobs.connect import connect
from jobs.evaluate import evaluate_in
from jobs.run_folder import with_absolute_paths
from jobs.sft import baseline
from jobs.train import train
from mmsr_ray.atlas.prepare import UNBALANCED, world_of
from mmsr_ray.atlas.reading import rag_skills
from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.evaluation.findings import VARIANTS, Finding, Point, SeedResults, as_dict, findings
from mmsr_ray.evaluation.rows import read_rows
from mmsr_ray.evaluation.summary import machine, write_json
from mmsr_ray.evaluation.trajectories import read_trajectories
from mmsr_ray.observability.findings import write_findings
from mmsr_ray.observability.progress import read_records

log = logging.getLogger("findings")

TEACHERS = ("oracle", "worldly")
KINDS = {"search_free": "search-free", "image_required": "image", "text_required": "text", "mix_required": "mixed"}


@dataclass(frozen=True)
class Study:
    """One config file, asked for variant by variant."""

    file: str
    overrides: Sequence[str]

    @property
    def config(self) -> Config:
        return with_absolute_paths(load(self.file, list(self.overrides)))

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir, self.config.run.name)

    def variant(self, seed: int, name: str, *own: str) -> Config:
        """The config of one run. Worlds and warm starts lie where jobs/train.py puts them, and are shared."""
        root = Path(self.config.run.dir)
        overrides = [
            f"run.seed={seed}",
            f"atlas.seed={seed}",
            f"atlas.dir={root}/worlds/atlas-{seed}",
            f"sft.cache_dir={root}/cache",
            *own,
            f"run.dir={self.folder}/seed-{seed}",
            f"run.name={name.replace(' ', '_')}",
            "findings.seeds=[]",  # how many others there are says nothing about this one
        ]
        return with_absolute_paths(load(self.file, [*self.overrides, *overrides]))

    def variants(self, seed: int) -> dict[str, Config]:
        """Every reinforced run of a seed: the recipe, its two ablations, and one whose warm start was cut short."""
        only_after = ("evaluation.before_training=false", "evaluation.workflows=[on_demand]")
        unbalanced = Path(self.config.run.dir) / "worlds" / f"atlas-{seed}" / UNBALANCED
        early = f"sft.steps={self.config.findings.early_sft_steps}"
        return {
            "full": self.variant(seed, "full"),
            "no penalty": self.variant(seed, "no penalty", "reward.search_penalty=0", *only_after),
            "no balancing": self.variant(seed, "no balancing", f"data.train={unbalanced}", *only_after),
            "early": self.variant(seed, "early", early, "evaluation.workflows=[on_demand,rag]", "evaluation.every_steps=0"),
        }

    def taught(self, seed: int, teacher: str, model: str) -> Config:
        """SFT of `model` on a teacher's trajectories: more questions than RL has, of the same world and split."""
        settings = self.config.findings
        world = Path(self.config.run.dir) / "worlds" / f"atlas-{seed}-taught"
        return self.variant(
            seed,
            f"sft {teacher}",
            f"atlas.dir={world}",
            f"atlas.train_questions={settings.sft_questions}",
            f"atlas.teacher={teacher}",
            f"model.path={model}",
            f"sft.epochs={settings.sft_epochs}",
            f"sft.lr={settings.sft_lr}",
            "sft.batch_size=16",
            "sft.warmup_ratio=0.1",
            "evaluation.workflows=[on_demand]",
        )


# ---------------------------------------------------------------------------------------------------- measuring


def measure_seed(study: Study, seed: int) -> SeedResults:
    """Run what is not done yet, and read what all of it gave."""
    configs = study.variants(seed)
    folders = {}
    for name, config in configs.items():
        log.info("== seed %d: %s", seed, name)
        folders[name] = train(config)
    rows = {(run, *_when_and_workflow(row)): row for run, folder in folders.items() for row in read_rows(folder)}
    full = configs["full"]
    questions = {"full": full.grpo.steps * full.grpo.groups_per_step}
    base = json.loads((folders["full"] / "stages.json").read_text())["stages"]["warm start"]["result"]
    for teacher in TEACHERS:
        log.info("== seed %d: SFT on the %s teacher", seed, teacher)
        config = study.taught(seed, teacher, base)
        folder = baseline(config)
        for row in evaluate_in(config, str(folder / "model"), folder, "after SFT"):
            rows[f"sft {teacher}", "after SFT", row["workflow"]] = row
        questions[f"sft {teacher}"] = json.loads((folder / "model" / "sft.json").read_text())["demonstrations"]
    return SeedResults(
        seed=seed,
        rows=rows,
        curves={name: curve(folders[name]) for name in VARIANTS},
        reading={(run, when): _skills(configs[run], folders[run], when) for run in ("full", "early") for when in ("before RL", "after RL")},
        questions=questions,
    )


def _when_and_workflow(row: dict[str, Any]) -> tuple[str, str]:
    when, _, workflow = row["name"].rpartition(", ")
    return when, workflow


def curve(folder: Path) -> list[Point]:
    """From metrics.jsonl of a run."""
    points = []
    for record in read_records(folder / "metrics.jsonl"):
        held_out = record["evaluation"]["rows"][0]["search_ratio_calls"] if record.get("evaluation", {}).get("rows") else None
        points.append(Point(record["step"], record["reward"], record["search_ratio_calls"], held_out))
    return points


def _skills(config: Config, folder: Path, when: str) -> dict[str, float]:
    world = world_of(config.atlas)
    questions = world.questions_by_uid("test", config.atlas.test_questions)
    file = folder / "trajectories" / f"{when}-rag.parquet".replace(" ", "_")
    return rag_skills(world, questions, read_trajectories(file))


# ---------------------------------------------------------------------------------------------------- telling


def write(study: Study, results: Sequence[SeedResults], found: Sequence[Finding]) -> Path:
    """findings.json (design §6) and findings.html."""
    content = {
        "findings": [as_dict(finding) for finding in found],
        "table": _table(results, study.config.agent.search_limit),
        "rag": {when: _over_rag(results, when) for when in ("before RL", "after RL")},
        "behaviour": {when: _behaviour(results, when) for when in ("before RL", "after RL")},
        "sft": [_line("RL", "full", "after RL", results), *[_line(f"SFT, {t}", f"sft {t}", "after SFT", results) for t in TEACHERS]],
        "curves": {name: [[_drawn(point) for point in result.curves[name]] for result in results] for name in VARIANTS},
        "needed": results[0].row("full", "after RL", "on_demand")["needed_search_ratio"],
        "machine": machine(),
        "seconds": sum(_seconds(folder) for folder in sorted(study.folder.glob("seed-*/*"))),
    }
    write_json(study.folder / "findings.json", content)
    return write_findings(study.folder, content)


def _drawn(point: Point) -> dict[str, Any]:
    return {"step": point.step, "reward": point.reward, "search_ratio": point.search_ratio, "held_out": point.held_out}


def _seconds(folder: Path) -> float:
    stages = folder / "stages.json"
    return sum(stage["seconds"] for stage in json.loads(stages.read_text())["stages"].values()) if stages.is_file() else 0.0


def _table(results: Sequence[SeedResults], search_limit: int) -> list[dict[str, Any]]:
    """Table 1's shape: models by workflow; columns are all questions and the kinds of them. Acc and SR by seed."""
    lines = [("before RL", "full", "before RL", workflow) for workflow in ("direct", "rag", "on_demand")]
    lines += [("after RL", "full", "after RL", workflow) for workflow in ("direct", "rag", "on_demand")]
    lines += [(f"SFT, {teacher}", f"sft {teacher}", "after SFT", "on_demand") for teacher in TEACHERS]
    lines += [(f"RL, {variant}", variant, "after RL", "on_demand") for variant in VARIANTS[1:]]
    return [
        {"model": model, "workflow": workflow, "cells": _cells([result.row(run, when, workflow) for result in results], search_limit)}
        for model, run, when, workflow in lines
    ]


def _cells(rows: Sequence[Any], search_limit: int) -> dict[str, Any]:
    def cell(parts: Sequence[Any]) -> dict[str, Any]:
        return {"accuracy": [p["accuracy"] for p in parts], "search_ratio": [p["searches_per_question"] / search_limit for p in parts]}

    return {"all": cell(rows)} | {label: cell([row["by_need"][need] for row in rows]) for need, label in KINDS.items()}


def _over_rag(results: Sequence[SeedResults], when: str) -> dict[str, Any]:
    bases = {"warm start cut short": "early", "whole warm start": "full"}
    return {label: [result.row(run, when, "rag")["accuracy"] for result in results] for label, run in bases.items()}


def _behaviour(results: Sequence[SeedResults], when: str) -> dict[str, Any]:
    rows = [result.row("full", when, "on_demand")["behaviour"] for result in results]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _line(label: str, run: str, when: str, results: Sequence[SeedResults]) -> dict[str, Any]:
    rows = [result.row(run, when, "on_demand") for result in results]
    return {
        "name": label,
        "questions": results[0].questions[run],
        "accuracy": [row["accuracy"] for row in rows],
        "search_ratio": [row["search_ratio_calls"] for row in rows],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="jobs/configs/findings.yaml", help="a YAML file over the defaults of mmsr_ray/config.py")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="single settings, over the file's")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    study = Study(args.config, args.overrides)
    try:
        config = study.config
        if not config.atlas.enabled:
            raise ConfigError("the findings need a world that knows which searches were needed: atlas.enabled=true")
        if not config.findings.seeds:
            raise ConfigError("findings.seeds is empty: name at least one seed")
        connect(config)
        results = [measure_seed(study, seed) for seed in config.findings.seeds]
    except USERS_TO_MEND as error:  # one sentence says how
        log.error("%s", error)
        return TO_MEND
    found = findings(results)
    for finding in found:
        log.info("%d. %s: %s", finding.id, finding.verdict, finding.claim)
        for number in finding.numbers:
            log.info("   %s: %s", number.name, " ".join("-" if value is None else f"{value:.3f}" for value in number.per_seed))
    log.info("%s", write(study, results, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
