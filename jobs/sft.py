"""The SFT baseline (spec §4.3): a teacher's correct trajectories, imitated.

    python jobs/sft.py --config jobs/configs/sft_paper.yaml sft.demonstrations=runs/gpt-4o/trajectories
    python jobs/sft.py --config jobs/configs/atlas.yaml run.name=sft model.path=runs/atlas/model atlas.teacher=worldly sft.epochs=8

`sft.demonstrations` is what jobs/evaluate.py wrote when it asked the teacher, any model or endpoint, the training questions; several
tries are several runs with evaluation.temperature=1 and a run.seed each, and a glob of their files. In Atlas, `atlas.teacher` answers
where it is left out. Only what is correct and well-formed is learned. The model lies in `<run>/model` afterwards; jobs/evaluate.py
evaluates it. Submit it again and finished stages are skipped. Exit status as of jobs/train.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the jobs package, when this file is run as a script

from ray.tune import PlacementGroupFactory

from jobs.atlas_stage import world, write_taught
from jobs.command import run_job
from jobs.demonstrations import read_demonstrations
from jobs.room import wait_for_room
from jobs.run_folder import RunFolder
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.algorithms.sft import MARK, Demonstrations, fine_tune
from mmsr_ray.config import Config, ConfigError
from mmsr_ray.learner.colocation import cards_alone
from mmsr_ray.nodes import bundle_of
from mmsr_ray.observability.progress import Progress
from mmsr_ray.rollout.engine import load_codec


def sft(
    config: Config,
    model: str,
    demonstrations: str | Path | Demonstrations,
    folder: Path,
    on_step: Callable[[int, int, float], None] | None = None,
) -> str:
    """Train `model` (folder or hub id) as `config.sft` says; returns `folder`, which holds the trained model.

    `demonstrations`: groups in the object store, or a file or folder of trajectories, from which the correct and well-formed ones
    are taken. Ray must be connected. A folder that holds a whole model is returned as it is. Raises NoRoom, DataError, SFTError, LearnerError.
    """
    folder = Path(folder).absolute()
    if not (folder / MARK).is_file():
        _wait_for_cards(config)

        def make() -> Demonstrations:
            return read_demonstrations(config, demonstrations) if isinstance(demonstrations, (str, Path)) else demonstrations

        fine_tune(config, model, make, folder, on_step)
    return str(folder)


def _wait_for_cards(config: Config) -> None:
    """Until all ranks have room: they themselves would wait until their start has taken too long. Raises NoRoom."""
    learner = config.learner
    if rank := bundle_of(learner.cpus_per_rank, cards_alone(learner, learner.gpus_per_rank), learner.node):
        wait_for_room(PlacementGroupFactory([rank] * learner.world_size), config.grpo.placement_seconds, "the supervised training")


def baseline(config: Config) -> Path:
    """The whole of it: demonstrations, training. Ray must be connected. Returns the run folder."""
    if not config.sft.demonstrations and not config.atlas.enabled:
        raise ConfigError("sft.demonstrations is empty: name the trajectories/ of an evaluation of the teacher by jobs/evaluate.py")
    progress = Progress()
    run = RunFolder(config, progress)
    with world(config) as here:
        load_codec(here)
        PromptSet.load(here.agent.prompts)
        path = here.sft.demonstrations
        if not path:
            path = str(run.path / "demonstrations.parquet")
            told = run.stage("demonstrations", lambda: write_taught(here, Path(path)))
            progress.note(f"the {here.atlas.teacher} teacher: {told['correct']} correct, {told['wrong']} wrong, {told['broken']} broken")
        model = run.stage("training", lambda: sft(here, here.model.path, path, run.path / "model", progress.sft))
    progress.note(f"model: {model}")
    progress.finish()
    return run.path


def main() -> int:
    return run_job("sft", __doc__, baseline)


if __name__ == "__main__":
    sys.exit(main())
