"""Evaluates one model: benchmarks x workflows, accuracy and search behaviour with their intervals.

    python jobs/evaluate.py --config jobs/configs/evaluate_atlas.yaml model.path=runs/atlas/model
    python jobs/evaluate.py --config jobs/configs/evaluate_endpoint.yaml      GPT-4o, Gemini: whatever answers as OpenAI does

Submit it again and it goes on where it stopped: answers go to answers.sqlite of the run folder as they are given, and what
is there is never asked for again. Questions that infrastructure broke are.

Exit status: 0 all is done; 2 something has to be mended, and one sentence says what; 3 tools.budget_usd is spent: the same
command with a higher budget goes on.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the jobs package, when this file is run as a script

from jobs.atlas_stage import world
from jobs.command import run_job
from jobs.evaluate_model import evaluate_model
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.config import Config, to_yaml
from mmsr_ray.evaluation.settings import label_of
from mmsr_ray.evaluation.summary import write_summary
from mmsr_ray.observability.browse import write_browser
from mmsr_ray.observability.progress import Progress
from mmsr_ray.observability.report import write_report
from mmsr_ray.observability.table import write_table
from mmsr_ray.rollout.engine import load_codec
from mmsr_ray.tools.actor import start_tools


def evaluate(config: Config) -> Path:
    """Returns the run folder, with answers, summary.json, trajectories, pages and report in it. Raises as `evaluate_model` does."""
    progress = Progress()
    folder = Path(config.run.dir, config.run.name)
    progress.stage("evaluation")
    rows = evaluate_in(
        config, config.model.path, folder, config.evaluation.label or config.tools.model.model or label_of(config.model.path)
    )
    progress.stage("report")
    (folder / "config.yaml").write_text(to_yaml(config))
    write_summary(folder, config=config, seconds=progress.seconds, rows=rows)
    write_browser(folder)
    write_report(folder, shown=config.evaluation.trajectories_shown)
    write_table(rows)
    progress.finish()
    return folder


def evaluate_in(config: Config, model: str, folder: Path, label: str) -> list[dict[str, Any]]:
    """`evaluate_model` with another model than the config's, in the config's world and with its tools, which end with it."""
    with world(config) as here:
        here = replace(here, model=replace(here.model, path=model))
        if here.tools.model.kind == "none":
            load_codec(here)
        PromptSet.load(here.agent.prompts)
        tools = start_tools(here)  # the actors live as long as this handle
        asyncio.run(tools.check())
        rows = evaluate_model(here, folder, label)
        asyncio.run(tools.settle())
        del tools
    return rows


def main() -> int:
    return run_job("evaluate", __doc__, evaluate)


if __name__ == "__main__":
    sys.exit(main())
