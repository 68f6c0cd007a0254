"""The command line of a job: --config and key=value, logs for people, and an exit status that says what came of it.

Exit status: 0 all is done; 2 something has to be mended, and one sentence says what; 3 tools.budget_usd is spent, and the same
command with a higher budget goes on.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from jobs.connect import connect
from jobs.engines import NoEngine
from jobs.preflight import PreflightError
from jobs.room import NoRoom
from jobs.run_folder import with_absolute_paths
from mmsr_ray.agent.prompts import PromptError
from mmsr_ray.agent.template import CodecError
from mmsr_ray.algorithms.sft import SFTError
from mmsr_ray.atlas.prepare import AtlasError
from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.data.schema import DataError
from mmsr_ray.evaluation.answers import AnswersError
from mmsr_ray.head import HeadAway
from mmsr_ray.learner.durable import NotWritten
from mmsr_ray.observability.report import FILE as REPORT
from mmsr_ray.observability.trackers.port import TrackerError
from mmsr_ray.serving.errors import NotReady
from mmsr_ray.serving.keys import KeysError
from mmsr_ray.tools.errors import BudgetSpent, ToolsError
from mmsr_ray.tools.tape import TapeMiss

TO_MEND = 2
OUT_OF_MONEY = 3
USERS_TO_MEND = (
    ConfigError,
    DataError,
    ToolsError,
    TapeMiss,
    CodecError,
    PromptError,
    AtlasError,
    HeadAway,
    NoRoom,
    PreflightError,
    NoEngine,
    NotWritten,
    AnswersError,
    SFTError,
    TrackerError,
    KeysError,
    NotReady,
)


def run_job(name: str, doc: str | None, job: Callable[[Config], Path]) -> int:
    """Parse the command line, join Ray, run `job(config)`, which returns its run folder. Returns the exit status."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="a YAML file over the defaults of mmsr_ray/config.py")
    parser.add_argument(
        "--default", action="append", metavar="key=value", help="a setting for where neither the file nor key=value names it"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="single settings, over the file's")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        config = with_absolute_paths(load(args.config, args.overrides, under=args.default))
        connect(config)
        folder = job(config)
    except USERS_TO_MEND as error:  # one sentence says how
        logging.getLogger(name).error("%s", error)
        return TO_MEND
    except BudgetSpent as spent:
        logging.getLogger(name).error("%s", spent)
        return OUT_OF_MONEY
    report = folder / REPORT
    logging.getLogger(name).info("%s", report if report.is_file() else folder)
    return 0
