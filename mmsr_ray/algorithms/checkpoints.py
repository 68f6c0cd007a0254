"""Folders of the learner in the run folder, old ones pruned.

Invariant: a folder named step_* is complete (the ranks rename it when it is). They write it themselves, so the run folder
must be on storage that they and the Algorithm share.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mmsr_ray.learner.group import LearnerGroup

SPARE = 1  # Tune may resume from one checkpoint before the newest: its own record of them is written now and then


def save_learner(learners: LearnerGroup, folder: Path, step: int, *, keep: int) -> Path:
    """Write the learner's state to folder/step_<step> and remove all but the newest `keep` + 1."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step:08d}"
    learners.save(target)
    for old in sorted(f for f in folder.glob("step_*") if f.suffix == "")[: -(keep + SPARE)]:
        shutil.rmtree(old)
    return target
