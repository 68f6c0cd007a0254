"""Checkpoints in the run folder: the learner's files and the state of the run, in one folder a step, old ones pruned.

Invariants
- A folder named step_* is whole: the ranks write it under another name, its manifest last, and then give it its name. They
  write it themselves, so the run folder must be on storage that they and the Algorithm share.
- A folder is a checkpoint by itself: what Tune keeps points to it, and when it is damaged the one before it takes its place.
"""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmsr_ray.algorithms import compatible
from mmsr_ray.learner.durable import PARTIAL, NotWritten, complaint, folder_bytes, free_bytes, size
from mmsr_ray.learner.group import LearnerGroup

logger = logging.getLogger(__name__)

SPARE = 1  # Tune may resume from one checkpoint before the newest: its own record of them is written now and then
STATE = "run.pkl"
SETTINGS = "settings.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be gone on from; the message says why and what to do."""


def folder_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def save(learners: LearnerGroup, target: Path, state: Mapping[str, Any], *, keep: int) -> None:
    """Write the learner and `state` (which holds "settings") to `target`, then remove all but the newest `keep` + 1.

    Raises NotWritten, and then everything is as it was before.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    earlier = whole(target.parent)
    needed = folder_bytes(earlier[-1]) if earlier else 0
    if needed > (free := free_bytes(target.parent)):  # before the disk is filled to its last byte, which others need too
        raise NotWritten(f"{target} was not written: it needs about {size(needed)} and {size(free)} are free there: make room")
    extra = {STATE: pickle.dumps(dict(state)), SETTINGS: json.dumps(state["settings"], indent=1).encode()}
    learners.save(target, extra)
    prune(target.parent, keep)


def give_up_unfinished(folder: Path) -> None:
    """Remove what is being written, by ranks that are to be replaced: should one of them live on where nobody can reach it, it finds
    nothing to give a name to.
    """
    for found in folder.glob(f"step_*{PARTIAL}"):
        shutil.rmtree(found, ignore_errors=True)


def prune(folder: Path, keep: int) -> None:
    """Leave the newest `keep` + 1 whole checkpoints and what is newer than the oldest of them; remove what a kill left half written."""
    kept = whole(folder)[-(keep + SPARE) :]
    for found in folder.glob("step_*"):
        if found.suffix or (kept and found.name < kept[0].name):
            shutil.rmtree(found)


def read_state(folder: Path) -> dict[str, Any]:
    """The state in a checkpoint's folder, which may have moved."""
    return pickle.loads((folder / STATE).read_bytes()) | {"learner": str(folder)}


def read_settings(folder: Path) -> dict[str, Any]:
    """The resolved settings of the run that wrote a checkpoint's folder."""
    return json.loads((folder / SETTINGS).read_text())


def usable(state: dict[str, Any], check: Callable[[Path], str]) -> dict[str, Any]:
    """`state` if the folder it points to is whole, or that of the newest whole one before it.

    `check` says in a sentence what is wrong with a folder, "" for nothing. Raises CheckpointError when there is none.
    """
    if state["learner"] is None:  # the starting model
        return state
    wanted = Path(state["learner"])
    said = check(wanted)
    if not said:
        return state
    for earlier in reversed([folder for folder in whole(wanted.parent) if folder.name < wanted.name]):
        if also := check(earlier):
            said += f"; {also}"
            continue
        logger.error("%s: training goes on from the checkpoint before it, %s", said, earlier.name)
        return read_state(earlier)
    raise CheckpointError(f"{said}; no whole checkpoint is left before it in {wanted.parent}: start a run of another name")


def same_run(state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises CheckpointError when `state` was saved under settings that make it another run; others are told."""
    if said := compatible.refusal(state["settings"], settings):
        raise CheckpointError(said)
    if said := compatible.changes(state["settings"], settings):
        logger.warning("since the checkpoint of step %d %s", state["step"], said)


def whole(folder: Path) -> list[Path]:
    """Checkpoints by name, oldest first; `complaint` looks at sizes only."""
    return [found for found in sorted(folder.glob("step_*")) if not found.suffix and not complaint(found)]
