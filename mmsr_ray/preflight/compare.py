"""Reports of nodes against the driver's: another image, storage that is not shared, not writable or too small. Pure.

Promise: each function returns one sentence that names the node and says what to do, or "".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mmsr_ray.learner.durable import size
from mmsr_ray.preflight.look import NodeReport

STATES = 12  # bytes in a checkpoint of a parameter that learns: master weights and AdamW's two moments
SPARE = 2  # checkpoints beside grpo.keep_checkpoints: one more is kept, and one is being written


def wrong_image(driver: NodeReport, nodes: Sequence[NodeReport]) -> str:
    for node in nodes:
        other = {"Python": (driver.python, node.python)} if node.python != driver.python else {}
        other |= {
            name: (version, node.packages.get(name, "none"))
            for name, version in driver.packages.items()
            if node.packages.get(name, "none") != version
        }
        if other:
            said = ", ".join(f"{name} {there} instead of {here}" for name, (here, there) in other.items())
            return f"node {node.node} runs another image than the driver: {said}; give all groups the same release of the image"
    return ""


def wrong_storage(folder: Path, nodes: Sequence[NodeReport], back: Sequence[str]) -> str:
    """`back`: nodes whose file the driver found in the folder."""
    for node in nodes:
        if node.error:
            return (
                f"node {node.node} cannot write to {folder}: {node.error}; mount run.dir there for the user that Ray runs as, or make room"
            )
        if not node.sees or node.node not in back:
            return (
                f"{folder} is another folder on node {node.node} than here: what one writes the other does not see; "
                "put run.dir on storage that all nodes share (a ReadWriteMany volume), mounted at the same path"
            )
    return ""


def no_room_on_disk(folder: Path, free: int, checkpoint: int, keep: int) -> tuple[str, str]:
    """(why not even one checkpoint fits, or "", a warning that not all that are to be kept do, or "")."""
    wanted = checkpoint * (keep + SPARE)
    if free < checkpoint:
        return (
            f"{folder} has {size(free)} free, and one checkpoint needs about {size(checkpoint)}: "
            "make room, enlarge the volume, or set run.dir to another",
            "",
        )
    if free < wanted:
        return "", f"{folder} has {size(free)} free; the {keep + SPARE} checkpoints there may be at once need about {size(wanted)}"
    return "", ""


def checkpoint_bytes(parameters: int, *, itemsize: int, trained: float = 1.0, frozen_model: bool = False) -> int:
    """About what a checkpoint takes: all weights in the dtype of compute, `itemsize` bytes each, those of the frozen model of the KL term
    where there is a second one, and the states of the share that is `trained`.
    """
    return int(parameters * (itemsize * (1 + frozen_model) + STATES * trained))


def parameters_in(model: Path) -> int:
    """Of the weights in a model folder; 0 where none lie there."""
    return sum(_parameters(file) for file in model.glob("*.safetensors"))


def _parameters(file: Path) -> int:
    """Read off a safetensors file's header: its length in eight bytes, then JSON."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for length in tensor["shape"]:
                count *= length
            total += count
    return total
