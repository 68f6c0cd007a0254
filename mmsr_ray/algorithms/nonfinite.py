"""Optimiser steps that were skipped because loss or gradient was NaN or infinite: told, and after three in a row the end.

Promise: one bad step costs that step. Three in a row mean that data or weights are broken: the run stops and does not
start again from its checkpoint, and the batch of the last of them lies in the run folder, sealed tokens and all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayError

from mmsr_ray.types import Group, Picture, SealedTokens

logger = logging.getLogger(__name__)

LIMIT = 3  # optimiser steps in a row
WRITE_SECONDS = 120.0

SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("epoch", pa.int32()),
        ("index", pa.int32()),  # which rollout of its group
        ("reward", pa.float64()),
        ("ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),
        ("logprobs", pa.list_(pa.float32())),
        ("versions", pa.list_(pa.int32())),
        ("grids", pa.list_(pa.list_(pa.int32(), 3))),
        ("pictures", pa.list_(pa.struct([("sha", pa.string()), ("data", pa.binary())]))),
    ]
)


class NonFiniteError(RuntimeError):
    """Training goes on after it was stopped for losses or gradients that are not finite."""


def verdict(learned: dict[str, float], step: int, groups: Sequence[ObjectRef], folder: Path) -> str:
    """What `learned`, the metrics of an update, say about the run: "" to go on, or the sentence with which it stops.

    `groups` are references to the update's `types.Group`; they are written to `folder` by a task when the run stops.
    """
    if not learned["skipped"]:
        return ""
    logger.error("step %d: %d optimiser steps were skipped, loss or gradient was not finite", step, int(learned["skipped"]))
    if learned["skipped_in_a_row"] < LIMIT:
        return ""
    path = folder / f"nonfinite_step_{step:05d}.parquet"
    try:
        ray.get(_write.remote(list(groups), str(path)), timeout=WRITE_SECONDS)
        kept = f"the batch is in {path} (algorithms.nonfinite.read_batch)"
    except (RayError, GetTimeoutError) as error:
        kept = f"the batch could not be written to {path} ({type(error).__name__})"
    return (
        f"{int(learned['skipped_in_a_row'])} optimiser steps in a row had a loss or gradient that was not finite, the last in step {step}: "
        f"{kept}; lower grpo.lr or look at these trajectories, then start a new run from the last checkpoint's model"
    )


@ray.remote(num_cpus=0, max_retries=1, scheduling_strategy="DEFAULT")  # as keeping.py's
def _write(groups: list[ObjectRef], path: str) -> None:
    """`groups` travel in a list, so that this task fetches them and nobody else."""
    write_batch(Path(path), ray.get(groups))


def write_batch(path: Path, groups: Iterable[Group]) -> None:
    """One row per trajectory; the file appears whole or not at all."""
    rows = [
        {
            "uid": group.uid,
            "epoch": group.epoch,
            "index": trajectory.index,
            "reward": trajectory.reward.total if trajectory.reward else None,
            "ids": trajectory.tokens.ids,
            "loss_mask": trajectory.tokens.loss_mask,
            "logprobs": trajectory.tokens.logprobs,
            "versions": trajectory.tokens.versions,
            "grids": trajectory.tokens.grids.tolist(),
            "pictures": [{"sha": picture.sha, "data": picture.data} for picture in trajectory.tokens.pictures],
        }
        for group in groups
        for trajectory in group.trajectories
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial)
    partial.replace(path)


def read_batch(path: Path) -> list[tuple[str, int, SealedTokens]]:
    """uid, index and tokens of each trajectory that `write_batch` wrote, in order."""
    return [
        (
            row["uid"],
            row["index"],
            SealedTokens(
                ids=np.array(row["ids"], dtype=np.int32),
                loss_mask=np.array(row["loss_mask"], dtype=bool),
                logprobs=np.array(row["logprobs"], dtype=np.float32),
                versions=np.array(row["versions"], dtype=np.int32),
                grids=np.array(row["grids"], dtype=np.int32).reshape(-1, 3),
                pictures=tuple(Picture(picture["data"], picture["sha"]) for picture in row["pictures"]),
            ),
        )
        for row in pq.read_table(path).to_pylist()
    ]
