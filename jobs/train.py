"""The whole of a run: warm start, evaluation, reinforcement learning, evaluation, report.

    python jobs/train.py --config jobs/configs/atlas.yaml grpo.steps=10

Submit it again and it goes on where it stopped: finished stages are skipped, training resumes from its last checkpoint.

Exit status: 0 all is done; 2 something has to be mended, and one sentence says what; 3 tools.budget_usd is spent: training
stands at a checkpoint, and the same command with a higher budget goes on from it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the jobs package, when this file is run as a script

from jobs.atlas_stage import world
from jobs.command import run_job
from jobs.demonstrations import source
from jobs.memory import check_memory
from jobs.preflight import check_cluster
from jobs.reinforce import reinforce
from jobs.run_folder import RunFolder
from jobs.warm_start import warm_start
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.config import Config, ConfigError, to_dict
from mmsr_ray.data.reader import read_index
from mmsr_ray.evaluation.rows import describe, read_rows
from mmsr_ray.evaluation.summary import write_summary
from mmsr_ray.observability.browse import write_browser
from mmsr_ray.observability.progress import Progress
from mmsr_ray.observability.report import write_report
from mmsr_ray.observability.trackers.follow import following, open_trackers
from mmsr_ray.rollout.engine import load_codec
from mmsr_ray.tools.actor import start_tools
from mmsr_ray.tools.errors import BudgetSpent


def train(config: Config) -> Path:
    """Run all stages; returns the run folder, with summary.json and report.html in it.

    Raises BudgetSpent when tools.budget_usd ends the training early; summary and report are there then too.
    """
    progress = Progress()
    run = RunFolder(config, progress)
    trackers = open_trackers(config.run.trackers, config.run.tracking, run.path)
    spent: BudgetSpent | None = None
    with world(config) as here, following(trackers, run.path, name=config.run.name, config=to_dict(here)):
        check_inputs(here)
        if here.grpo.steps > 0:
            check_cluster(here)
        tools = start_tools(here)  # the actors live as long as this handle
        asyncio.run(tools.check())
        model = here.model.path
        if here.sft.enabled:
            model = run.stage("warm start", lambda: warm_start(here, *source(here), progress.sft))
            progress.note(f"model after the warm start: {model}")  # all there is of a run with grpo.steps=0
        if here.grpo.steps > 0:
            try:
                with progress.follow(run.path / "metrics.jsonl", here.grpo.steps):
                    run.stage("training", lambda: reinforce(here, model, run.path))
            except BudgetSpent as error:
                spent = error
        asyncio.run(tools.settle())
        del tools
    rows = read_rows(run.path)
    for row in rows:
        progress.note(describe(row))
    write_summary(run.path, config=config, seconds=run.seconds, rows=rows)
    write_browser(run.path)
    write_report(run.path, shown=config.evaluation.trajectories_shown)
    progress.finish()
    if spent is not None:
        raise spent
    return run.path


def check_inputs(config: Config) -> None:
    """What a user can get wrong, found before anything is started. Raises ConfigError, CodecError, PromptError or DataError."""
    if config.rollout.num_runners < 1:
        raise ConfigError("rollout.num_runners=0 (as many as fit) is for evaluations: training needs a number, at least 1")
    load_codec(config)
    check_memory(config)
    PromptSet.load(config.agent.prompts)
    for path in (config.data.train, config.data.test):
        read_index(path, config.data)


def main() -> int:
    return run_job("train", __doc__, train)


if __name__ == "__main__":
    sys.exit(main())
