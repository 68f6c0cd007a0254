"""How many runners, ranks and tool actors, and what a run will cost: simulated from its config and from measured costs. Starts no Ray.

    python jobs/plan.py --config jobs/configs/plan_paper.yaml
    python jobs/plan.py --config jobs/configs/plan_paper.yaml plan.gpus=32 grpo.staleness=1
    python jobs/plan.py --config my.yaml plan.target_seconds=60 plan.text_search.median_seconds=2

Prints where a step's time goes, how busy each part is, the services' queues, the money, and the part whose doubling would save most. With
`plan.target_seconds` also the fewest runners and tool actors for a step of that length; with `plan.gpus` the best split of so many
GPUs. Writes the same as JSON. What the model knows and leaves out: mmsr_ray/planning/README.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the jobs package, when this file is run as a script

from rich.console import Console

from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.evaluation.summary import write_json
from mmsr_ray.planning.pipeline import PlanError
from mmsr_ray.planning.plan import plan
from mmsr_ray.planning.show import as_dict, shown
from mmsr_ray.planning.sizing import Size, for_gpus, for_target

log = logging.getLogger("plan")
TO_MEND = 2  # exit status: one sentence says what


def sizes(config: Config) -> dict[str, Size]:
    """What was asked for. Raises PlanError."""
    asked = config.plan
    found = {}
    if asked.gpus:
        found[f"best split of {asked.gpus} GPUs"] = for_gpus(config, asked.gpus)
    if asked.target_seconds:
        found[f"fewest for a step of {asked.target_seconds:g} s"] = for_target(config, asked.target_seconds)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="a YAML file over the defaults of mmsr_ray/config.py: that of the run, with a section `plan`")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="single settings, over the file's")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        config = load(args.config, args.overrides)
        answers = sizes(config)
        if answers and config.rollout.num_runners == 0:
            config = next(iter(answers.values())).of(config)
        found = plan(config, what_if=config.plan.what_if)
    except (ConfigError, PlanError) as error:
        log.error("%s", error)
        return TO_MEND
    Console().print(shown(config, found, answers))
    target = Path(config.plan.out or Path(config.run.dir, "plans", f"{config.run.name}.json"))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, as_dict(config, found, answers))
    log.info("%s", target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
